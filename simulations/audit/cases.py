"""Private trainings that are audited: each is the product's own, charged to a ledger, which says what it cost.

What the audit is given is what leaves a site: the model after each round.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from astrofed.client.privacy.protection import Protection
from astrofed.client.privacy.units import Population
from astrofed.client.site import Site
from astrofed.client.task import TrainInstruction
from astrofed.shared.plan import Plan, load_plan
from astrofed.simulations.audit.bound import Bound, bound
from astrofed.simulations.audit.canaries import Canaries, Parallel, coins

DELTA = 1e-6
Epsilon = float


@dataclass(frozen=True)
class Case:
    """One way to train privately."""

    name: str
    epsilon: float  # that the plan asks for
    side: int = 128  # side² canaries
    rounds: int = 1
    epochs: int = 1  # of a round
    batch: float = 1.0  # share of the units that a step draws
    clipping: str = "flat"
    layers: int = 1
    samples: int = 1  # that each unit holds
    replay: bool = False  # also train on no data at all, and see what that leaves of the change
    loader: bool = False  # look for each unit only in the steps in which a data loader with a known seed would draw it

    @property
    def canaries(self) -> int:
        """How many units there could be."""
        return self.side**2

    def plan(self, units: int) -> Plan:
        """Return the plan of a training on so many units."""
        size = max(1, round(self.batch * units))
        return audit_plan(
            training={
                "optimizer": "sgd",
                "learning_rate": 1.0,
                "batch_size": size,
                "epochs": self.epochs,
                "max_steps": 1 if self.loader else None,
            },
            privacy={"epsilon": self.epsilon, "delta": DELTA, "clipping": self.clipping},
            rounds=self.rounds,
        )

    def find(self, seed: int) -> "Finding":
        """Train, guess, and return what was found; `seed` is of the canaries' coins alone."""
        canaries = Canaries(self.side, self.samples, coins(self.canaries, seed))
        change, accounted = self._change(canaries.population())
        if self.replay:
            absent = replace(canaries, present=np.zeros_like(canaries.present)).population()
            idle, _ = self._change(absent)
            change = [own - other for own, other in zip(change, idle, strict=True)]
        return Finding(self.name, self.canaries, accounted, bound(canaries.scores(change), canaries.present, DELTA))

    def _change(self, population: Population) -> "tuple[list[Tensor], Epsilon]":
        """Return how far a training moves each layer, in the steps that are looked at, and what the ledger says."""
        model, plan = Parallel(self.side, self.layers), self.plan(len(population))
        before = [parameter.detach().clone() for parameter in model.parameters()]
        change = [torch.zeros_like(each) for each in before]
        told = 0.0
        for step, told in enumerate(rounds_audited(model, population, plan)):  # noqa: B007 - the last one counts
            for total, then, now in zip(change, before, model.parameters(), strict=True):
                moved = now.detach() - then
                if self.loader:
                    moved *= torch.from_numpy(drawn_by_loader(self.canaries, self.batch, step).reshape(moved.shape))
                total += moved
                then.copy_(now.detach())
        return change, told


@dataclass(frozen=True)
class Finding:
    """What the ledger says of a training, and what the canaries say."""

    case: str
    canaries: int
    accounted: Epsilon
    measured: Bound

    @property
    def sound(self) -> bool:
        """Whether what was measured does not contradict the ledger."""
        return self.measured.epsilon <= self.accounted


def audit_plan(training: dict[str, Any], privacy: dict[str, Any] | None, rounds: int) -> Plan:
    """Return a plan of one site; of its task and model nothing is used."""
    return load_plan(
        {
            "name": "audit",
            "rounds": rounds,
            "task": "planets",
            "model": "mlp",
            "training": training,
            "privacy": None if privacy is None else {**privacy, "unit": "canary"},
            "participants": [{"name": "audited", "data": "canaries"}],
        }
    )


def train_audited(model: nn.Module, population: Population, plan: Plan) -> Epsilon:
    """Train `model` in place as a site does, on a ledger of its own, and return the epsilon that this tells."""
    return list(rounds_audited(model, population, plan))[-1]


def rounds_audited(model: nn.Module, population: Population, plan: Plan) -> Iterator[Epsilon]:
    """Train as `train_audited`, and give the epsilon after each round, when the model leaves."""
    with tempfile.TemporaryDirectory(prefix="astrofed-audit-") as home:
        site = Site("audited", Path("canaries"), home=Path(home))
        protection = Protection(plan, site, "0" * 64, "canary", len(population))
        for number in range(1, plan.rounds + 1):
            yield protection.train(model, population, TrainInstruction(number, 0))["epsilon"]


def drawn_by_loader(units: int, share: float, step: int) -> NDArray[np.bool_]:
    """Return [unit] who is in a step's batch where a data loader with a known seed shuffles all units once an epoch."""
    batches = round(1 / share)
    epoch, batch = divmod(step, batches)
    drawn: NDArray[np.bool_] = np.random.default_rng(epoch).permutation(units) % batches == batch
    return drawn


CASES = (
    Case("one step on all units", 1.0),
    Case("one step on all units", 4.0),
    Case("one step on all units", 8.0),
    Case("5 rounds of 10 steps on a tenth", 1.0, rounds=5, batch=0.1),
    Case("5 rounds of 10 steps on a tenth", 4.0, rounds=5, batch=0.1),
    Case("per-layer clipping, 9 layers", 4.0, side=96, clipping="per-layer", layers=9),
    Case("adaptive clipping", 4.0, rounds=5, batch=0.1, clipping="adaptive"),
    Case("units of 8 samples", 2.0, side=48, samples=8),
    Case("beside a replay without data", 4.0, rounds=3, replay=True),
    Case("40 steps on a fortieth, its batches guessed", 1.0, rounds=40, batch=0.025, loader=True),
)
