"""One task's private training at one site: its account with the site's ledger, and rounds that are charged to it.

Every task that supports privacy trains by this and nothing else, so that no round is trained that was not reserved.
"""

from torch import nn

from astrofed.client.privacy.clipping import Flat, make_clipping
from astrofed.client.privacy.dpsgd import Mechanism, sampling, train_privately
from astrofed.client.privacy.ledger import Ledger
from astrofed.client.privacy.lifetime import besides, lifetime
from astrofed.client.privacy.refusals import check_private
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
        self._plan, self._privacy, self._unit, self._units = plan, plan.privacy, unit, units
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
            KeepsData, TrainingDiverged: refused after the round was spent.
        """
        plan = self._plan
        check_private(model, plan.training)  # before anything is reserved
        if self._clipping is None:
            self._clipping = make_clipping(self._privacy, model)
            if self._privacy.clipping == "adaptive":  # a process that goes on with a run takes over the norm
                self._clipping.norm = self._account.clipping_norm() or self._clipping.norm
        with self._account.round(instruction.round, self._clipping.norm) as event:
            mechanism = Mechanism(event, self._clipping)
            train_privately(model, units, plan.training, instruction, plan.rounds, mechanism)
        return {"epsilon": self._account.epsilon(), "delta": self._privacy.delta}
