"""Rules that choose among whole updates by their distances: Krum, Multi-Krum, Bulyan's first half, minimum diameter.

Each states its paper, its equation, and how many replies n it needs to withstand f liars. Updates are x_1 … x_n.
"""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from astrofed.server.aggregation.base import Combination, Floats, Mixing, TooFewReplies, squared_distances
from astrofed.shared.plan import Section


class Krum(Combination):
    """The one update whose n - f - 2 nearest others lie closest to it.

    Blanchard et al. (2017), "Machine learning with adversaries: Byzantine tolerant gradient descent", NeurIPS, section
    4, by the score s(i) = sum of ||x_i - x_j||^2 over the n - f - 2 updates x_j closest to x_i; the lowest score wins.
    """

    def minimum_replies(self, f: int) -> int | None:
        """Return 2f + 3 (proposition 4.2)."""
        return 2 * f + 3

    def combine(self, gram: Floats, shares: Floats, f: int) -> Floats:
        """Return weight 1 for the update with the lowest score, the first of them where several have it."""
        weights = np.zeros(len(gram))
        weights[np.argmin(krum_scores(gram, f))] = 1.0
        return weights


class MultiKrum(Combination):
    """Mean of the updates with the lowest Krum scores, n - f of them unless `keep` says fewer.

    Blanchard et al. (2017), section 4, keeps m of them. As many as n - f leaves no honest update out where f lie far
    away; each of the n - f lowest scores is at most the largest honest one, so what is kept stays near the honest.
    """

    weighs_examples = True

    class Options(Section):
        """`keep`: how many updates are averaged, at most n - f; by default n - f."""

        keep: Annotated[int, Field(ge=1)] | None = None

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._keep = options.keep

    def minimum_replies(self, f: int) -> int | None:
        """Return 2f + 3 as for Krum, or f + `keep` if that is more."""
        return max(2 * f + 3, f + (self._keep or 0))

    def combine(self, gram: Floats, shares: Floats, f: int) -> Floats:
        """Return the shares of the updates kept, scaled to sum 1; among equal scores the first come first."""
        kept = np.argsort(krum_scores(gram, f), kind="stable")[: self._keep or len(gram) - f]
        weights = np.zeros(len(gram))
        weights[kept] = shares[kept] / shares[kept].sum()
        return weights


class BulyanSelection(Mixing):
    """Selects n - 2f updates one after the other: the best by Krum of those that remain, again and again.

    El Mhamdi et al. (2018), section 4, the first half of Bulyan. With r updates remaining, scores count the r - f - 2
    nearest others, and one at least: the last rounds have fewer than Krum's own condition asks for. Two that are each
    other's nearest then score alike, and whoever lies nearer to all that remain goes first.
    """

    def minimum_replies(self, f: int) -> int | None:
        """Return 4f + 3 (proposition 2)."""
        return 4 * f + 3

    def needed_for(self, mixed: int, f: int) -> int:
        """Return 2f more than are to be left."""
        return mixed + 2 * f

    def mix(self, gram: Floats, f: int) -> Floats:
        """Return weights (n - 2f, n), a 1 in each row; rows in the order of selection."""
        distances = squared_distances(gram)
        np.fill_diagonal(distances, np.inf)
        remaining = np.arange(len(gram))
        weights = np.zeros((len(gram) - 2 * f, len(gram)))
        for row in weights:
            near = np.sort(distances[np.ix_(remaining, remaining)], axis=1)
            scores = near[:, : max(1, len(remaining) - f - 2)].sum(axis=1)
            best = int(np.lexsort((near[:, :-1].sum(axis=1), scores))[0])
            row[remaining[best]] = 1.0
            remaining = np.delete(remaining, best)
        return weights


class MinimumDiameter(Combination):
    """Mean of the n - f updates with the smallest diameter, the largest distance between two of them (MDA).

    Rousseeuw (1985), "Multivariate estimation with high breakdown point"; El Mhamdi et al. (2018), "Brute"; Farhadkhani
    et al. (2022), "Byzantine machine learning made easy by resilient averaging of momentums", ICML. Exact: n - f of
    the updates lie within a diameter t if f of them cover every pair that is farther apart, and such covers are found
    in 2^f steps at most. Of several sets of one diameter, it takes that with the smallest sum of squared distances.
    """

    weighs_examples = True
    limit = "is exact by a search in 2^f steps and stops at f = 12"

    def minimum_replies(self, f: int) -> int | None:
        """Return 2f + 1; None beyond f = 12."""
        return 2 * f + 1 if f <= 12 else None

    def combine(self, gram: Floats, shares: Floats, f: int) -> Floats:
        """Return the shares of the updates kept, scaled to sum 1."""
        kept = smallest_set(squared_distances(gram), f)
        weights = np.zeros(len(gram))
        weights[kept] = shares[kept] / shares[kept].sum()
        return weights


def krum_scores(gram: Floats, f: int) -> Floats:
    """Return each update's Krum score (n,): the sum of its squared distances to the n - f - 2 nearest others.

    Raises:
        TooFewReplies: n < f + 3, where no neighbour is left to measure by.
    """
    n = len(gram)
    if n < f + 3:
        raise TooFewReplies(f"Krum's score needs at least f + 3 = {f + 3} updates; there are {n}")
    distances = squared_distances(gram)
    np.fill_diagonal(distances, np.inf)
    scores: Floats = np.sort(distances, axis=1)[:, : n - f - 2].sum(axis=1)
    return scores


def smallest_set(distances: Floats, f: int) -> NDArray[np.intp]:
    """Return the indices of n - f points of smallest diameter, by squared distances (n, n)."""
    levels = np.unique(distances)
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _covers(distances, levels[middle], f) else (middle + 1, high)
    found = [_compact(distances, cover, f) for cover in _covers(distances, levels[low], f)]
    return min(found, key=lambda kept: float(distances[np.ix_(kept, kept)].sum()))


def _covers(distances: Floats, limit: float, f: int) -> set[frozenset[int]]:
    """Return sets of at most f points without which no pair is farther apart than `limit`; empty if there is none.

    Of the farthest pair that remains, one has to go; whoever is far from more points than may still go, goes.
    """
    found: set[frozenset[int]] = set()
    stack: list[frozenset[int]] = [frozenset()]
    seen = set(stack)
    while stack:
        gone = stack.pop()
        left = np.array([i for i in range(len(distances)) if i not in gone])
        among = distances[np.ix_(left, left)]
        far = among > limit
        if not far.any():
            found.add(gone)
            continue
        if len(gone) == f:
            continue
        crowded = np.flatnonzero(far.sum(axis=1) > f - len(gone))
        pair = left[crowded[:1]] if len(crowded) else left[list(np.unravel_index(np.argmax(among), among.shape))]
        grown = {gone | {int(point)} for point in pair} - seen
        seen |= grown
        stack += grown
    return found


def _compact(distances: Floats, gone: frozenset[int], f: int) -> NDArray[np.intp]:
    """Return n - f points of those not gone: whoever lies farthest from the others, by the sum, goes first."""
    kept = np.array([i for i in range(len(distances)) if i not in gone])
    for _ in range(f - len(gone)):
        kept = np.delete(kept, np.argmax(distances[np.ix_(kept, kept)].sum(axis=1)))
    return kept
