"""What a run will spend on a dataset, found before it trains, and its rounds' spending by way of the site's ledger.

The budget is the dataset's and not the run's: noise is found for what other runs have left of it.
"""

from collections.abc import Iterator, Sequence
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


def forecast(spent: Sequence[Event], privacy: Privacy, rate: float, steps: int, dataset: str) -> Forecast:
    """Return what `steps` steps at that sample rate will cost after `spent`, with the noise found or given.

    Raises:
        BudgetSpent: less than 1 % of the budget is left.
        BudgetUnreachable: no noise is enough for so many steps.
    """
    before, noise = epsilon(spent, privacy.delta), privacy.noise_multiplier
    if noise is None:
        assert privacy.epsilon is not None  # the plan has exactly one of the two
        if privacy.epsilon - before < WORTHWHILE * privacy.epsilon:
            raise BudgetSpent(
                f"nothing worth training with is left for dataset {dataset[:12]}…: the budget is {privacy.epsilon:g}, "
                f"spent are {before:.4g}, left {max(privacy.epsilon - before, 0):.4g} of epsilon at delta "
                f"{privacy.delta:g}. Only the data's owner may raise privacy.epsilon"
            )
        noise = noise_multiplier_for(privacy.epsilon, privacy.delta, rate, steps, spent)
    event = Event(noise, rate, steps)
    return Forecast(event, privacy.delta, before, epsilon([*spent, event], privacy.delta), privacy.epsilon)


class Account:
    """One run's account with a site's ledger, for one dataset."""

    def __init__(self, ledger: Ledger, plan: Plan, dataset: str, unit: str, units: int, rate: float, steps: int):
        """`rate` and `steps`: sample rate and number of steps of a round; the plan has a [privacy] section."""
        assert plan.privacy is not None
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
        found = self._forecast([row.event for row in rows], self._plan.rounds)
        before = f" from {found.epsilon_before:.4g}" if rows else ""
        return (
            f"noise multiplier {found.event.noise_multiplier:.4g}, which brings epsilon{before} to "
            f"{found.epsilon_after:.4g}"
        )

    @contextmanager
    def round(self, number: int) -> Iterator[Event]:
        """Reserve a round's steps, give what they have to be, and settle them unless the block raises.

        The noise is found at the run's first round here, for all rounds to come, and kept as long as rounds go on.

        Raises:
            BudgetSpent, BudgetUnreachable: it doesn't fit into the budget; nothing is reserved.
        """
        if self._last is None or number <= self._last[0]:
            rounds = max(self._plan.rounds - number + 1, 1)
            noise = self._forecast(self._ledger.events(self._dataset), rounds).event.noise_multiplier
        else:
            noise = self._last[1]
        expense = Expense(
            run=self._plan.name,
            round=number,
            mode=self._plan.mode,
            dataset=self._dataset,
            unit=self._unit,
            units=self._units,
            clipping_norm=self._privacy.clipping_norm,
            event=Event(noise, self._rate, self._steps),
        )
        reservation = self._ledger.reserve(expense, self._privacy.epsilon, self._privacy.delta)
        self._last = number, noise
        yield expense.event
        self._ledger.settle(reservation, expense, self._steps)

    def epsilon(self) -> float:
        """Return epsilon of all that was ever spent on the dataset."""
        return epsilon(self._ledger.events(self._dataset), self._privacy.delta)

    def _forecast(self, spent: Sequence[Event], rounds: int) -> Forecast:
        return forecast(spent, self._privacy, self._rate, rounds * self._steps, self._dataset)
