"""What a run will spend on a dataset, found before it trains, and its rounds' spending by way of the site's ledger.

The budget is the dataset's and not the run's: noise is found for what other runs have left of it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from astrofed.client.privacy.ledger import Ledger
from astrofed.client.privacy.mistakes import BudgetSpent
from astrofed.shared.plan import Plan, Privacy
from astrofed.shared.privacy.accounting import epsilon, noise_multiplier_for
from astrofed.shared.privacy.events import Event, Expense

WORTHWHILE = 0.01  # a run begins only where at least this share of the budget is left


@dataclass(frozen=True)
class Forecast:
    """What rounds to come will cost, at `delta`; epsilons are of all that is ever spent on the dataset."""

    event: Event  # all steps of those rounds
    delta: float
    epsilon_before: float
    epsilon_after: float
    budget: float | None  # None: unbounded

    @property
    def left(self) -> float | None:
        """What will be left of the budget; epsilons don't add up, so a later run may spend a little more than that."""
        return None if self.budget is None else max(self.budget - self.epsilon_after, 0.0)


@dataclass(frozen=True)
class Budget:
    """What all spending on a dataset may ever come to."""

    epsilon: float | None  # None: unbounded
    delta: float


def budget_for(privacy: Privacy, lifetime: Budget | None) -> Budget:
    """Return what a plan's training is held to: its own budget, or the site's `lifetime` where the plan has none.

    A site with a lifetime budget lets in no plan with a larger one of its own (`admission`).
    """
    if privacy.epsilon is None and lifetime is not None:
        return lifetime
    return Budget(privacy.epsilon, privacy.delta)


def forecast(
    spent: Sequence[Event],
    privacy: Privacy,
    rate: float,
    steps: int,
    dataset: str,
    *,
    lifetime: Budget | None = None,
    besides: Sequence[Event] = (),
) -> Forecast:
    """Return what `steps` steps at that sample rate will cost after `spent`, with the noise found or given.

    `lifetime` is the site's own budget for the dataset; `besides` is what else the run will spend.

    Raises:
        BudgetSpent: less than 1 % of the budget is left, or the given noise costs more than is left.
        BudgetUnreachable: no noise is enough for so many steps.
    """
    budget = budget_for(privacy, lifetime)
    before, noise = epsilon(spent, budget.delta), privacy.noise_multiplier
    after_all = [*spent, *besides]
    if noise is None:
        assert privacy.epsilon is not None  # the plan has exactly one of the two
        if privacy.epsilon - before < WORTHWHILE * privacy.epsilon:
            raise BudgetSpent(
                f"nothing worth training with is left for dataset {dataset[:12]}…: the budget is {privacy.epsilon:g}, "
                f"spent are {before:.4g}, left {max(privacy.epsilon - before, 0):.4g} of epsilon at delta "
                f"{privacy.delta:g}. Only the data's owner may raise privacy.epsilon"
            )
        noise = noise_multiplier_for(privacy.epsilon, privacy.delta, rate, steps, after_all)
    event = Event(noise, rate, steps)
    after = epsilon([*after_all, event], budget.delta)
    if privacy.noise_multiplier is not None and budget.epsilon is not None and after > budget.epsilon:
        raise BudgetSpent(
            f"{steps:,} steps at noise multiplier {noise:g} would bring what is spent on dataset {dataset[:12]}… to "
            f"epsilon {after:.4g} at delta {budget.delta:g}; the site's budget is {budget.epsilon:g}, spent are "
            f"{before:.4g}, left {max(budget.epsilon - before, 0):.4g}. A new plan can do with fewer rounds or more "
            "noise"
        )
    return Forecast(event, budget.delta, before, after, budget.epsilon)


class Account:
    """One run's account with a site's ledger, for one dataset."""

    def __init__(
        self,
        ledger: Ledger,
        plan: Plan,
        dataset: str,
        unit: str,
        units: int,
        rate: float,
        steps: int,
        *,
        lifetime: Budget | None = None,
        besides: Callable[[int], Sequence[Event]] = lambda _: (),
    ) -> None:
        """Open an account for a plan that has a [privacy] section.

        Args:
            ledger: the site's.
            plan: the run's.
            dataset: its fingerprint.
            unit: what one privacy unit is.
            units: how many of them are trained on.
            rate: a step's sample rate.
            steps: of a round.
            lifetime: the site's own budget for the dataset.
            besides: what the run will spend otherwise from a round on (0: from its beginning on).
        """
        assert plan.privacy is not None
        self._lifetime, self._besides, self._budget = lifetime, besides, budget_for(plan.privacy, lifetime)
        self._ledger, self._plan, self._privacy = ledger, plan, plan.privacy
        self._dataset, self._unit, self._units = dataset, unit, units
        self._rate, self._steps = rate, steps
        self._last: tuple[int, float] | None = None  # the round charged last and its noise

    def outlook(self) -> str:
        """Say, before training starts, what the run will spend; what a run that goes on has spent so far.

        Raises:
            BudgetSpent, BudgetUnreachable: a run of that name which hasn't begun yet won't fit into the budget.
        """
        rows = self._ledger.book().spending(self._dataset)
        if any(row.run == self._plan.name for row in rows):
            return f"epsilon {self.epsilon():.4g} spent so far"
        found = self._forecast([row.event for row in rows], self._plan.rounds, 0)
        before = f" from {found.epsilon_before:.4g}" if rows else ""
        return (
            f"noise multiplier {found.event.noise_multiplier:.4g}, which brings epsilon{before} to "
            f"{found.epsilon_after:.4g}"
        )

    @contextmanager
    def round(self, number: int, clipping_norm: float | None = None, turn: str = "") -> Iterator[Event]:
        """Reserve a round's steps, give what they have to be, and settle them unless the block raises.

        `clipping_norm` is what the round begins with, by default the plan's; `turn` is that of noise which is shared.
        The noise is found at the run's first round here, for all rounds to come, and kept as long as rounds go on.

        Raises:
            BudgetSpent, BudgetUnreachable: it doesn't fit into the budget; nothing is reserved.
            TurnUsed: noise was drawn under that turn before; nothing is reserved.
        """
        if self._last is None or number <= self._last[0]:
            rounds = max(self._plan.rounds - number + 1, 1)
            noise = self._forecast(self._ledger.events(self._dataset), rounds, number).event.noise_multiplier
        else:
            noise = self._last[1]
        expense = Expense(
            run=self._plan.name,
            round=number,
            mode=self._plan.mode,
            dataset=self._dataset,
            unit=self._unit,
            units=self._units,
            clipping_norm=self._privacy.clipping_norm if clipping_norm is None else clipping_norm,
            event=Event(noise, self._rate, self._steps),
            turn=turn,
        )
        reservation = self._ledger.reserve(expense, self._budget.epsilon, self._budget.delta)
        self._last = number, noise
        yield expense.event
        self._ledger.settle(reservation, expense, self._steps)

    def clipping_norm(self) -> float | None:
        """Return the norm with which this run's last round began, by the ledger; None before its first."""
        rows = [row for row in self._ledger.book().spending(self._dataset) if row.run == self._plan.name]
        return rows[-1].clipping_norm if rows else None

    def epsilon(self) -> float:
        """Return epsilon of all that was ever spent on the dataset."""
        return epsilon(self._ledger.events(self._dataset), self._privacy.delta)

    def _forecast(self, spent: Sequence[Event], rounds: int, first: int) -> Forecast:
        return forecast(
            spent,
            self._privacy,
            self._rate,
            rounds * self._steps,
            self._dataset,
            lifetime=self._lifetime,
            besides=self._besides(first),
        )
