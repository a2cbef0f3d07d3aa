"""One task's private training at one site: its account with the site's ledger, and rounds that are charged to it.

Every task that supports privacy trains by this and nothing else, so that no round is trained that was not reserved.
"""

import re

from torch import nn

from astrofed.client.privacy.clipping import Flat, make_clipping
from astrofed.client.privacy.dpsgd import Mechanism, sampling, train_privately
from astrofed.client.privacy.ledger import Ledger
from astrofed.client.privacy.lifetime import besides, lifetime
from astrofed.client.privacy.noise_keys import NotPeers
from astrofed.client.privacy.refusals import NoTurn, check_all_trained, check_private
from astrofed.client.privacy.shared_noise import SharedNoise, shared_noise
from astrofed.client.privacy.spending import Account
from astrofed.client.privacy.units import Population
from astrofed.client.site import Site
from astrofed.client.task import TrainInstruction
from astrofed.shared.plan import Plan


class Protection:
    """What protects one dataset at one site through one run of a plan that has a [privacy] section."""

    def __init__(self, plan: Plan, site: Site, dataset: str, unit: str, units: int) -> None:
        """`dataset`: its fingerprint; `units`: how many privacy units are trained on, each one a `unit`."""
        assert plan.privacy is not None
        self._plan, self._privacy, self._unit, self._units, self._site = plan, plan.privacy, unit, units, site
        rate, steps = sampling(plan.training, units)
        self._account = Account(
            Ledger(site.home),
            plan,
            dataset,
            unit,
            units,
            rate,
            steps,
            lifetime=lifetime(site),
            besides=besides(plan, site),
        )
        self._clipping: Flat | None = None  # an adaptive norm goes on from round to round
        self._outlook: str | None = None

    def outlook(self) -> str:
        """Say, before training starts, what the run will spend, and where noise will leave nothing to learn.

        Raises:
            BudgetSpent, BudgetUnreachable: the run doesn't fit into what is left for the dataset.
        """
        if self._outlook is None:
            self._outlook = self._account.outlook()
            if self._units == 1:
                self._outlook += (
                    f"; its one {self._unit} is in every step, hidden by nothing but noise: expect to learn next to "
                    f"nothing from it"
                )
        return self._outlook

    def train(self, model: nn.Module, units: Population, instruction: TrainInstruction) -> dict[str, float]:
        """Reserve, train, settle; return epsilon and delta of all that was ever spent on the dataset.

        Raises:
            CouplesUnits, NotWithPrivacy, BudgetSpent, BudgetUnreachable: refused; nothing is spent.
            NoTurn, TurnUsed, NotPeers: noise that is to be shared can't be, or was already; nothing is spent.
            KeepsData, TrainingDiverged: refused after the round was spent.
        """
        plan = self._plan
        check_private(model, plan.training)  # before anything is reserved
        if self._clipping is None:
            self._clipping = make_clipping(self._privacy, model)
            if self._privacy.clipping == "adaptive":  # a process that goes on with a run takes over the norm
                self._clipping.norm = self._account.clipping_norm() or self._clipping.norm
        shared = self._shared(instruction.noise_turn)
        if shared is not None:
            check_all_trained(model)
        turn = instruction.noise_turn if shared is not None else ""
        with self._account.round(instruction.round, self._clipping.norm, turn) as event:
            mechanism = Mechanism(event, self._clipping, shared)
            train_privately(model, units, plan.training, instruction, plan.rounds, mechanism)
        return {"epsilon": self._account.epsilon(), "delta": self._privacy.delta}

    def _shared(self, turn: str) -> SharedNoise | None:
        """Return how noise is shared with other sites, where the plan wants that."""
        if self._privacy.shared_noise is None:
            return None
        if not re.fullmatch(r"[0-9a-f]{32}", turn):
            raise NoTurn("noise is to be shared, but the request gives no turn for it: the coordinator must name one")
        if self._site.peers is None:
            raise NotPeers(f"{self._site.name} has no home folder, and so no key to share noise by")
        return shared_noise(self._plan, self._site.name, self._site.peers, turn)
