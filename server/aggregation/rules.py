"""The rules that ship: mean, coordinate median, trimmed mean, Krum, Multi-Krum, and mixing of nearest neighbours.

Each states its paper, its equation, and how many replies n it needs to withstand f liars. Updates are x_1 … x_n.
"""

from collections.abc import Iterable
from typing import Annotated

import numpy as np
from pydantic import Field

from astrofed.server.aggregation.base import (
    Combination,
    Coordinatewise,
    Floats,
    Mixing,
    Rule,
    TooFewReplies,
    squared_distances,
)
from astrofed.server.aggregation.order import sort_rows
from astrofed.shared.plan import Section


class Mean(Combination):
    """Weighted mean of the updates; one liar moves it at will.

    McMahan et al. (2017), "Communication-efficient learning of deep networks from decentralized data", AISTATS: the
    aggregation of FedAvg, sum_i s_i x_i with shares s_i.
    """

    needs_gram = False
    weighs_examples = True

    def minimum_replies(self, f: int) -> int | None:
        """Return 1 for f = 0; no number of replies makes a mean robust."""
        return 1 if f == 0 else None

    def combine(self, gram: Floats, shares: Floats, f: int) -> Floats:
        """Return the shares as they are."""
        return shares


class Median(Coordinatewise):
    """Median of each coordinate; for an even number of updates the mean of the two middle values.

    Yin et al. (2018), "Byzantine-robust distributed learning: towards optimal statistical rates", ICML, definition 1.
    """

    def minimum_replies(self, f: int) -> int | None:
        """Return 2f + 1: the middle must lie among the honest."""
        return 2 * f + 1

    def reduce(self, rows: Floats, f: int) -> Floats:
        """Return the median of each column."""
        sort_rows(rows)
        n = len(rows)
        return _mean_of(rows[(n - 1) // 2 : n // 2 + 1])


class TrimmedMean(Coordinatewise):
    """Mean of each coordinate without its f smallest and f largest values.

    Yin et al. (2018), as for the median, definition 2, with the number of trimmed values given as the integer f.
    """

    def minimum_replies(self, f: int) -> int | None:
        """Return 2f + 1: one value must remain."""
        return 2 * f + 1

    def reduce(self, rows: Floats, f: int) -> Floats:
        """Return the mean of each column's n - 2f middle values."""
        sort_rows(rows)
        return _mean_of(rows[f : len(rows) - f])


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


class NearestNeighbourMixing(Mixing):
    """Replaces each update by the mean of the n - f updates nearest to it, itself among them (NNM).

    Allouah et al. (2023), "Fixing by mixing: a recipe for optimal Byzantine ML under heterogeneity", AISTATS, algorithm
    2. Before a robust rule it brings the error down to the order that is optimal when participants' data differ.
    """

    def minimum_replies(self, f: int) -> int | None:
        """Return 2f + 1."""
        return 2 * f + 1

    def mix(self, gram: Floats, f: int) -> Floats:
        """Return weights (n, n): row i has 1 / (n - f) for the updates nearest to i, the first of equally near ones."""
        distances = squared_distances(gram)
        np.fill_diagonal(distances, -1.0)
        n = len(gram)
        nearest = np.argsort(distances, axis=1, kind="stable")[:, : n - f]
        weights = np.zeros((n, n))
        np.put_along_axis(weights, nearest, 1.0 / (n - f), axis=1)
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


def largest_f(stages: Iterable[Rule], n: int) -> int | None:
    """Return the largest number of liars that all stages withstand among n replies; None: not even zero."""
    stages, found = list(stages), None
    for f in range(n):
        needs = [stage.minimum_replies(f) for stage in stages]
        if any(need is None or need > n for need in needs):
            break
        found = f
    return found


def _mean_of(rows: Floats) -> Floats:
    total: Floats = rows[0].copy()
    for row in rows[1:]:
        total += row
    total /= len(rows)
    return total
