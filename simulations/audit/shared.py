"""Noise that sites share, audited: one site trains on canaries, and all sites' messages are looked at.

The other sites' data are known to the attacker, so that of their messages noise is all that counts. Nobody learns more
from all messages than from their sum, if noise is as strong between pairs as it should be; `alone` looks at what the
site's own message would say if it were not.
"""

import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astrofed.client.privacy import protection, shared_noise
from astrofed.client.privacy.noise_keys import Peers, noise_key, public_digits
from astrofed.client.privacy.protection import Protection
from astrofed.client.privacy.units import Population
from astrofed.client.site import Site
from astrofed.client.task import TrainInstruction
from astrofed.shared.plan import Plan, load_plan
from astrofed.shared.privacy.accounting import noise_multiplier_for
from astrofed.shared.privacy.noise import Randomness
from astrofed.simulations.audit.canaries import Parallel
from astrofed.simulations.audit.cases import DELTA, Case, Epsilon, audit_plan
from astrofed.simulations.audit.planted import Planted

_share = shared_noise.own_share


class _Told(Randomness):
    """The own noise of a site that tells it: once it is taken off, nothing is left."""

    def normal(self, count: int) -> NDArray[np.float64]:
        """Return [count] zeros."""
        return np.zeros(count)


@dataclass(frozen=True)
class SharedCase(Case):
    """One way to share noise."""

    sites: int = 3
    colluding: int = 0  # tell their keys and their own noise
    alone: bool = False

    def plan(self, units: int) -> Plan:
        """Return the plan of sites of so many units each."""
        noise = noise_multiplier_for(self.epsilon, DELTA, 1.0, self.rounds)
        shared = {"noise_multiplier": noise, "delta": DELTA, "shared_noise": {"colluding": self.colluding}}
        training = {"optimizer": "sgd", "learning_rate": 1.0, "batch_size": units, "max_steps": 1}
        names = ["audited", *(f"site {number}" for number in range(1, self.sites))]
        plan = audit_plan(training, {"epsilon": self.epsilon, "delta": DELTA}, self.rounds).to_dict()
        return load_plan(
            {
                **plan,
                "training": training,
                "privacy": {**shared, "unit": "canary"},
                "strategy": {"name": "robust", "rule": "mean", "f": 0},
                "participants": [{"name": name, "data": "canaries"} for name in names],
            }
        )

    def _change(self, population: Population) -> tuple[list[Tensor], Epsilon]:
        model, plan = Parallel(self.side, self.layers), self.plan(len(population))
        change, told = torch.zeros(self.layers, self.side, self.side), 0.0
        with tempfile.TemporaryDirectory(prefix="astrofed-audit-") as folder:
            homes = {each.name: Path(folder) / each.name for each in plan.trainers}
            keys = {name: public_digits(noise_key(home)) for name, home in homes.items()}
            peers = {name: Peers(home, {n: k for n, k in keys.items() if n != name}) for name, home in homes.items()}
            site = Site("audited", Path("canaries"), home=homes["audited"], peers=peers["audited"])
            protected = Protection(plan, site, "0" * 64, "canary", len(population))
            for number in range(1, plan.rounds + 1):
                before, turn = _weights(model), secrets.token_hex(16)
                told = protected.train(model, population, TrainInstruction(number, 0, noise_turn=turn))["epsilon"]
                change += _weights(model) - before
                if not self.alone:
                    change += self._others(plan, peers, turn) / len(population)
        return list(change), told

    def _others(self, plan: Plan, peers: dict[str, Peers], turn: str) -> Tensor:
        """Return [layer, row, column] what is not known of the other sites' messages: the noise that they took away."""
        assert plan.privacy is not None and plan.privacy.noise_multiplier is not None
        total = torch.zeros(self.layers, self.side, self.side)
        for place, name in enumerate(each.name for each in plan.trainers[1:]):
            noise = torch.zeros_like(total)
            own = _Told() if place < self.colluding else Randomness()
            message = shared_noise.shared_noise(plan, name, peers[name], turn)
            message.hide(noise.view(-1), plan.privacy.noise_multiplier * plan.privacy.clipping_norm, own)
            total -= noise
        return total


def _weights(model: Parallel) -> Tensor:
    return torch.stack([parameter.detach().clone() for parameter in model.parameters()])


SHARED_CASES = (
    SharedCase("noise shared by 3 sites", 4.0),
    SharedCase("noise shared by 5 sites, 2 of which tell theirs", 4.0, colluding=2, sites=5),
    SharedCase("noise shared by 9 sites, the site's own message", 8.0, sites=9, alone=True),
)
PLANTED_SHARED = (
    Planted(
        "shared noise: a share of 1/n",
        shared_noise,
        "own_share",
        lambda honest: 1 / honest,
        SharedCase("9 sites", 2.0, sites=9),
    ),
    Planted(
        "shared noise: none between pairs",
        protection,
        "shared_noise",
        lambda plan, *_: shared_noise.SharedNoise(_share(len(plan.trainers)), ()),
        SharedCase("9 sites, one message", 2.0, sites=9, alone=True),
    ),
    Planted(
        "shared noise: colluding sites counted as honest",
        shared_noise,
        "own_share",
        lambda _: _share(16),
        SharedCase("16 sites, 14 tell theirs", 2.0, sites=16, colluding=14),
    ),
)
