"""What DP-SGD costs: (epsilon, delta) of a history of Poisson-sampled Gaussian steps, and the noise a budget needs.

Neighbouring datasets differ by one unit that is there or not. Epsilon is the smaller of two upper bounds from Opacus:
Rényi DP (Mironov, Talwar & Zhang 2019, arXiv:1908.10530; converted by theorem 21 of Balle et al., arXiv:1905.09982) and
numerical composition (Gopi, Lee & Wutschitz 2021, arXiv:2106.02848). Events are composed, epsilons never added.
"""

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from opacus.accountants.analysis.rdp import compute_rdp

from astrofed.shared.errors import UserMistake
from astrofed.shared.privacy.composition import DELTA_ERROR, EPSILON_ERROR, Steps, coarser, composed_epsilon, mesh_width
from astrofed.shared.privacy.events import Event

__all__ = ["BudgetUnreachable", "Event", "epsilon", "noise_multiplier_for", "within"]

ORDERS = np.array([1.125, 1.25, 1.5, 1.75, 2.5, 3.5, *range(2, 65), 80, 96, 128, 192, 256, 384, 512])  # few take long
NUMERICAL_UP_TO = 100.0  # beyond, the mesh of the numerical composition grows large and nothing is protected anyway
POINTS = 8e6  # of all kinds together that are composed numerically, about a second's work; beyond, kinds are merged
NUMERICAL_FROM_RATE = 1e-6  # below, its integrals are not reliable
LEAST_NOISE, LARGEST_NOISE = 0.05, 1e4
NOTHING = 1e-9  # an epsilon as good as 0
CLOSE = 1e-3  # a budget's noise is found when it spends more than this much below the whole budget


class BudgetUnreachable(UserMistake):
    """No amount of noise keeps so many steps within so small an epsilon."""


def epsilon(events: Iterable[Event], delta: float) -> float:
    """Return an upper bound on the epsilon of all events together at `delta` in (0, 1); 0 for none."""
    steps = _merged(events)
    return min(_renyi(steps, delta), _numerical(steps, delta)) if steps else 0.0


def within(events: Iterable[Event], delta: float, budget: float) -> bool:
    """Say whether `epsilon(events, delta)` is at most `budget`; the costlier bound is taken only where it decides."""
    steps = _merged(events)
    return not steps or _renyi(steps, delta) <= budget or _numerical(steps, delta) <= budget


def noise_multiplier_for(
    target: float, delta: float, sample_rate: float, total_steps: int, spent: Iterable[Event] = ()
) -> float:
    """Return about the least noise multiplier with which `total_steps` steps stay within epsilon = `target`.

    `spent` is what the dataset has cost before: it and the steps to come stay within `target` together.

    Raises:
        BudgetUnreachable: even a noise of 10⁴ clipping norms spends more.
    """
    return _noise_multiplier_for(target, delta, sample_rate, total_steps, _merged(spent))


@lru_cache(maxsize=256)
def _noise_multiplier_for(target: float, delta: float, rate: float, total_steps: int, spent: Steps) -> float:
    before = [Event(*kind) for kind in spent]

    def excess(noise: float) -> float:
        return math.log(max(epsilon([*before, Event(noise, rate, total_steps)], delta), NOTHING) / target)

    low, high = 0.5, 1.0
    while not within([*before, Event(high, rate, total_steps)], delta, target):
        low, high = high, 2 * high
        if high > LARGEST_NOISE:
            already = f" besides epsilon = {epsilon(before, delta):.4g} spent before" if before else ""
            raise BudgetUnreachable(
                f"{total_steps} steps at a sample rate of {rate:.3g} can't be kept within epsilon = {target:g} at "
                f"delta = {delta:g}{already}; allow a larger epsilon, or fewer rounds or epochs"
            )
    above, below = excess(low), excess(high)
    while above <= 0:
        if low < LEAST_NOISE:
            return low
        low, high, below = low / 2, low, above
        above = excess(low)
    # Regula falsi on log-log axes, where the curve is nearly straight, aimed a little inside the budget.
    while below < -CLOSE and high / low > 1 + CLOSE / 10:
        share = (above + CLOSE / 2) / (above - below)
        middle = low * (high / low) ** min(max(share, 0.02), 0.98)
        found = excess(middle)
        low, high, above, below = (low, middle, above, found) if found <= 0 else (middle, high, found, below)
    return high


def _merged(events: Iterable[Event]) -> Steps:
    counts: dict[tuple[float, float], int] = {}
    for event in events:
        kind = (event.noise_multiplier, event.sample_rate)
        counts[kind] = counts.get(kind, 0) + event.steps
    return tuple((noise, rate, count) for (noise, rate), count in sorted(counts.items()) if count)


def _renyi(steps: Steps, delta: float) -> float:
    spent = sum((_renyi_step(noise, rate) * count for noise, rate, count in steps), np.zeros(len(ORDERS)))
    bounds = spent - (np.log(delta) + np.log(ORDERS)) / (ORDERS - 1) + np.log1p(-1 / ORDERS)
    return max(float(np.nanmin(bounds)), 0.0)


@lru_cache(maxsize=1024)
def _renyi_step(noise: float, rate: float) -> NDArray[np.float64]:
    return np.asarray(compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=ORDERS.tolist()), dtype=np.float64)


@lru_cache(maxsize=1024)
def _numerical(steps: Steps, delta: float) -> float:
    """Return the bound by numerical composition, or infinity where it can't be computed."""
    if _renyi(steps, delta) > NUMERICAL_UP_TO or min(rate for _, rate, _ in steps) < NUMERICAL_FROM_RATE:
        return math.inf
    total = sum(count for _, _, count in steps)
    points = 2 * _reach(steps, delta) / mesh_width(total, delta)
    kinds = coarser(steps, max(1, int(POINTS / points)))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # log(1 - q) at q = 1
        try:
            value = composed_epsilon(kinds, delta, _reach(kinds, delta))
        except (ValueError, RuntimeError):  # delta below the mesh's precision, or the mesh too coarse
            return math.inf
    return value if math.isfinite(value) and value >= 0 else math.inf


def _reach(steps: Steps, delta: float) -> float:
    """Return how far the privacy loss goes that matters: remark 5.6 of Gopi et al., as Opacus has it."""
    error, total = DELTA_ERROR * delta, sum(count for _, _, count in steps)
    single = [_renyi(((noise, rate, 1),), error / (8 * total)) for noise, rate, _ in steps]
    return max(_renyi(steps, error / 4), *single, EPSILON_ERROR) + 3
