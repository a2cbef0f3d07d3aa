"""Which metrics may leave a site with a policy, and in which form: on its list, of enough units, rounded or noised.

A noised metric is the root of the mean over units of each unit's mean squared error, none of which counts for more than
its bound b². One unit that is there or not moves the sum by at most b², and m metrics that leave together, each in its
b², by at most √m: Gaussian noise of z·√m on the sums is one step of noise multiplier z in the ledger. How many units
there are is taken to be public, as it is when a site enrols.
"""

import math
import re
import threading
from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from astrofed.client.admission import shown
from astrofed.client.policy import DataRules, MetricNoise
from astrofed.client.privacy.ledger import Ledger
from astrofed.client.refusing import Withheld
from astrofed.client.site import Site, SiteSummary
from astrofed.shared.plan import Plan
from astrofed.shared.privacy.events import Event, Expense
from astrofed.shared.privacy.noise import Randomness

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _./-]{0,99}")
UnitErrors = Mapping[str, NDArray[np.float64]]  # by metric: [unit] each unit's mean squared error


def releasable(
    names: Collection[str], rules: DataRules, units: Callable[[str], int], asked: Collection[str] | None = None
) -> list[str]:
    """Return which of a task's metrics may leave.

    Args:
        names: those that the task made.
        rules: the policy's, for the dataset.
        units: how many privacy units a metric is of.
        asked: those that the coordinator named; None: whatever may leave.

    Raises:
        Withheld: none may, or one that was asked for by name.
    """
    for name in asked or ():
        if name not in names:
            raise Withheld(f"there is no metric {shown(name)} at this site")
        if not rules.allows_metric(name):
            raise Withheld(f"the site's policy doesn't let metric {shown(name)} out; it allows {_allowed(rules)}")
        if units(name) < rules.min_units:
            raise Withheld(
                f"metric {shown(name)} is of fewer than the {rules.min_units} units that the policy asks for"
            )
    listed = [name for name in names if _NAME.fullmatch(name) and rules.allows_metric(name)]
    if not listed:
        raise Withheld(f"none of the metrics may leave; the site's policy allows {_allowed(rules)}")
    enough = [name for name in listed if units(name) >= rules.min_units]
    if not enough:
        raise Withheld(f"no metric is of the {rules.min_units} units or more that the site's policy asks for")
    return [name for name in enough if asked is None or name in asked]


def rounded(value: float, digits: int | None) -> float:
    """Return a number to so many significant digits; None: as it is."""
    return value if digits is None else float(f"{value:.{digits - 1}e}")


class NoisyRelease:
    """Adds noise to metrics and charges each release to the site's ledger."""

    def __init__(self, plan: Plan, site: Site, rules: DataRules, noise: MetricNoise) -> None:
        self._plan, self._rules, self._noise = plan, rules, noise
        self._ledger, self._random, self._lock = Ledger(site.home), Randomness(), threading.Lock()

    def release(
        self, names: Collection[str], errors: UnitErrors, round_number: int, summary: SiteSummary
    ) -> dict[str, float]:
        """Return noised metrics: those of `names` that have a bound and that the task knows unit by unit.

        Raises:
            Withheld: there is none, or their errors are no finite numbers.
            BudgetSpent: the release doesn't fit into what is left of the dataset's budget; nothing is told.
        """
        bounds = {name: bound for name in names if name in errors and (bound := self._noise.bound(name)) is not None}
        bounds = {name: bound for name, bound in bounds.items() if len(errors[name]) >= self._rules.min_units}
        if not bounds:
            raise Withheld("no metric can be hidden by noise: none has a bound in the policy and is known unit by unit")
        sums = [_bounded_sum(errors[name], bound) for name, bound in bounds.items()]
        multiplier = self._noise.multiplier
        expense = Expense(
            run=self._plan.name,
            round=round_number,
            mode=f"{self._plan.mode}, metrics",
            dataset=summary.fingerprint,
            unit=summary.unit,
            units=summary.num_units,
            clipping_norm=1.0,
            event=Event(multiplier, 1.0, 1),
        )
        reservation = self._ledger.reserve(expense, self._rules.epsilon, self._rules.delta)
        with self._lock:
            told = self._random.hidden(torch.tensor(sums, dtype=torch.float64), multiplier * math.sqrt(len(sums)))
        self._ledger.settle(reservation, expense, 1)
        return {
            name: bound * math.sqrt(max(total, 0.0) / len(errors[name]))
            for (name, bound), total in zip(bounds.items(), told.tolist(), strict=True)
        }


def _bounded_sum(errors: NDArray[np.float64], bound: float) -> float:
    """Return the sum over units of mean squared errors, each in b² and at most 1."""
    if errors.ndim != 1 or not np.isfinite(errors).all() or (errors < 0).any():
        raise Withheld("the task's errors by unit are not one finite number for each")
    return float(np.minimum(errors / bound**2, 1.0).sum())


def _allowed(rules: DataRules) -> str:
    return ", ".join(rules.metrics) or "none"
