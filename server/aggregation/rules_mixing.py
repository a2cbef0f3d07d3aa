"""Pre-aggregators: nearest-neighbour mixing, bucketing, and clipping to a fixed or an adaptive length.

Each states its paper, its equation, and how many replies n it needs to withstand f liars. Updates are x_1 … x_n.
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from astrofed.server.aggregation.base import Floats, Mixing, squared_distances
from astrofed.shared.plan import Positive, Section


class NearestNeighbourMixing(Mixing):
    """Replaces each update by the mean of the n - f updates nearest to it, itself among them (NNM).

    Allouah et al. (2023), "Fixing by mixing: a recipe for optimal Byzantine ML under heterogeneity", AISTATS, algorithm
    2. Before a robust rule it brings the error down to the order that is optimal when participants' data differ.
    """

    pools = True

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


class Bucketing(Mixing):
    """Replaces the updates by the means of random buckets of a few; at most f of the buckets hold a liar.

    Karimireddy et al. (2022), "Byzantine-robust learning on heterogeneous datasets via bucketing", ICLR, algorithm 1
    (the second version, which draws without replacement). The rule after it has ceil(n / size) updates to withstand f
    liars with. The order is drawn anew each round, from the plan's seed.
    """

    pools = True

    class Options(Section):
        """`bucket_size`: updates in each bucket; the last one may hold fewer."""

        bucket_size: Annotated[int, Field(ge=2)] = 2

    def __init__(self, options: Options, seed: int = 0) -> None:
        super().__init__(options)
        self._given, self._size, self._seed = options, options.bucket_size, seed

    def minimum_replies(self, f: int) -> int | None:
        """Return 1: what the rule after it needs decides."""
        return 1

    def needed_for(self, mixed: int, f: int) -> int:
        """Return how many updates make `mixed` buckets."""
        return (mixed - 1) * self._size + 1

    def seeded(self, seed: int) -> "Bucketing":
        """Return bucketing in the order that the seed draws."""
        return Bucketing(self._given, seed)

    def mix(self, gram: Floats, f: int) -> Floats:
        """Return weights (ceil(n / size), n): 1 / (updates in the bucket) for those in it."""
        order = np.random.default_rng(self._seed).permutation(len(gram))
        buckets = [order[start : start + self._size] for start in range(0, len(order), self._size)]
        weights = np.zeros((len(buckets), len(gram)))
        for row, bucket in zip(weights, buckets, strict=True):
            row[bucket] = 1.0 / len(bucket)
        return weights


class Clip(Mixing):
    """Shortens updates to a fixed length: x_i * min(1, c / ||x_i||).

    Sun et al. (2019), "Can you really backdoor federated learning?", arXiv:1911.07963, norm bounding. By itself it
    bounds what a liar can do in a round; a robust rule comes after it.
    """

    about_model = True

    class Options(Section):
        """`clip_norm`: the length c, in the units of the weights."""

        clip_norm: Positive

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._norm = options.clip_norm

    def minimum_replies(self, f: int) -> int | None:
        """Return 1."""
        return 1

    def mix(self, gram: Floats, f: int) -> Floats:
        """Return a diagonal of factors (n, n)."""
        return np.diag(_shortened(gram, self._norm))


class AdaptiveClip(Mixing):
    """Shortens the k longest updates to the length of the next one, k = floor(2 f (n - f) / n) (ARC).

    Allouah et al. (2025), "Adaptive gradient clipping for robust federated learning", ICLR, algorithm 2. It keeps the
    guarantee of the rule after it, and no liar's update is longer than some honest participant's.
    """

    about_model = True

    def minimum_replies(self, f: int) -> int | None:
        """Return 2f + 1."""
        return 2 * f + 1

    def mix(self, gram: Floats, f: int) -> Floats:
        """Return a diagonal of factors (n, n)."""
        n = len(gram)
        lengths = np.sort(np.sqrt(np.maximum(np.diag(gram), 0.0)))
        return np.diag(_shortened(gram, float(lengths[n - 1 - 2 * f * (n - f) // n])))


def _shortened(gram: Floats, norm: float) -> Floats:
    """Return the factors (n,) that bring each update to at most the length `norm`."""
    lengths = np.sqrt(np.maximum(np.diag(gram), 0.0))
    return np.divide(norm, lengths, out=np.ones(len(gram)), where=lengths > norm)
