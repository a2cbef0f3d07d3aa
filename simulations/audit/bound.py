"""A lower bound on epsilon from guesses who was trained on (Steinke, Nasr & Jagielski 2023, arXiv:2305.08846).

Each of m canaries is in the data or not by a fair coin of its own. Whoever sees what leaves the training guesses the
coins of some. Under (epsilon, delta)-DP right guesses are hardly more than those of as many coins that fall right with
probability e^epsilon / (1 + e^epsilon); so many right guesses are evidence against an epsilon.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

CONFIDENCE = 0.99
SHARES = (1.0, 0.3, 0.1, 0.03)  # of the canaries that are guessed, the most certain ones; chosen before any is seen
_STEP, _FINE = 0.25, 1e-4  # of epsilon


@dataclass(frozen=True)
class Bound:
    """The best of the bounds for several numbers of guesses, which together hold with the confidence asked for."""

    epsilon: float  # it is more than this; 0: nothing is shown
    right: int  # guesses that gave it
    guesses: int


def p_value(right: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """Return how probable at least so many right guesses are at most under (epsilon, delta)-DP (theorem 5.2 there).

    `guesses` must have been fixed before, and `canaries` counts all, guessed or not.
    """
    fair = 1 / (1 + math.exp(-epsilon))
    found = float(stats.binom.sf(right - 1, guesses, fair))
    if right and delta:
        below = np.cumsum(stats.binom.pmf(np.arange(right - 1, -1, -1), guesses, fair))  # at least right - i, i from 1
        found += 2 * canaries * delta * float((below / np.arange(1, right + 1)).max())
    return min(found, 1.0)


def least_epsilon(right: int, guesses: int, canaries: int, delta: float, confidence: float) -> float:
    """Return an epsilon that is exceeded with `confidence`, where so many guesses are right; 0 where none is shown."""
    chance, low = 1 - confidence, 0.0
    if p_value(right, guesses, canaries, low, delta) > chance:
        return 0.0
    while p_value(right, guesses, canaries, low + _STEP, delta) <= chance:
        low += _STEP
    high = low + _STEP
    while high - low > _FINE:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(right, guesses, canaries, middle, delta) <= chance else (low, middle)
    return low


def bound(
    scores: NDArray[np.floating], present: NDArray[np.bool_], delta: float, shares: Sequence[float] = SHARES
) -> Bound:
    """Return what guesses by `scores` [canary] show, where `present` [canary] are the coins.

    Of each share of the canaries the half with the largest scores is guessed present, that with the smallest absent.
    The shares divide what may go wrong among them, so that the best of their bounds holds with `CONFIDENCE`.
    """
    order, canaries = np.argsort(scores, kind="stable"), len(scores)
    best = Bound(0.0, 0, 0)
    for share in shares:
        half = max(1, int(share * canaries / 2))
        right = int(present[order[-half:]].sum()) + int((~present[order[:half]]).sum())
        found = least_epsilon(right, 2 * half, canaries, delta, 1 - (1 - CONFIDENCE) / len(shares))
        if found > best.epsilon or not best.guesses:
            best = Bound(found, right, 2 * half)
    return best
