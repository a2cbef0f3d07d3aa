"""How good a prediction with uncertainty is, and intervals that hold what they promise.

Scores of Gaussian predictions in closed form; deep ensembles as the moments of their mixture; split-conformal
intervals with the finite-sample correction. Means, standard deviations and truths share one shape and unit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEVEL = 0.9  # of the intervals that are reported
LEVELS = tuple(step / 10 for step in range(1, 10))
"""Nominal levels of a reliability curve."""
_EDGES = np.concatenate([[0.0], np.geomspace(0.05, 50.0, 140)])
"""Of the public grid that sites count their conformity scores on: neighbours differ by 5 %."""


def gaussian_nll(mean: Tensor, spread: Tensor, truth: Tensor) -> Tensor:
    """Return the negative log likelihood of each truth, in nats, its constant included."""
    z = (truth - mean) / spread
    loss: Tensor = 0.5 * z.square() + spread.log() + 0.5 * math.log(2 * math.pi)
    return loss


def gaussian_crps(mean: Tensor, spread: Tensor, truth: Tensor) -> Tensor:
    """Return the continuous ranked probability score of each truth, in its unit.

    Gneiting et al. (2005), Monthly Weather Review 133, equation 5: σ [z (2Φ(z) − 1) + 2φ(z) − 1/√π].
    """
    z = (truth - mean) / spread
    cumulative = torch.special.erf(z / math.sqrt(2))  # 2Φ − 1
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    score: Tensor = spread * (z * cumulative + 2 * density - 1 / math.sqrt(math.pi))
    return score


def half_width(level: float) -> float:
    """Return how many standard deviations a Gaussian's central interval of that level reaches to each side."""
    return math.sqrt(2) * float(torch.special.erfinv(torch.tensor(level, dtype=torch.float64)))


def mixture(means: Tensor, spreads: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the equal mixture over the first axis, an ensemble's members.

    Lakshminarayanan et al. (2017), NeurIPS, section 2.4: the variance is the mean of the members' variances plus the
    variance of their means.
    """
    mean = means.mean(dim=0)
    variance = spreads.square().mean(dim=0) + means.var(dim=0, unbiased=False)
    return mean, variance.sqrt()


def conformal_factor(scores: NDArray[np.float64], level: float = LEVEL) -> float | None:
    """Return by how many standard deviations intervals must reach so that a new truth lies inside with that chance.

    Split conformal prediction (Papadopoulos et al. 2002; Lei et al. 2018, JASA 113, theorem 2.2) with the normalised
    score |y − μ| / σ: the ⌈(n + 1) level⌉-th smallest of n scores. It holds for truths that are exchangeable with
    those of the scores, whatever the model. None: so few scores promise nothing at this level.
    """
    rank = math.ceil(round((len(scores) + 1) * level, 9))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else None


def histogram(scores: NDArray[np.float64]) -> dict[int, int]:
    """Return how many scores lie in each bin (edge b, edge b + 1] of the public grid; empty bins left out.

    The last bin holds all beyond the grid.
    """
    bins = np.maximum(np.searchsorted(_EDGES, scores, side="left") - 1, 0)
    found, counts = np.unique(bins, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


@dataclass(frozen=True)
class Pooled:
    """What several sites' counts of scores come to together."""

    factor: float  # standard deviations to each side
    coverage: float  # of the test scores
    calibration: int  # how many scores it rests on
    test: int


def pooled_conformal(
    calibration: Sequence[Mapping[int, int]], test: Sequence[Mapping[int, int]], level: float = LEVEL
) -> Pooled | None:
    """Return the pooled factor, and how many of the pooled test scores it covers, from sites' histograms.

    The factor is the upper edge of the bin in which the pooled quantile lies, so it is never too small, and at most one
    bin too large. None: too few scores, or the quantile lies beyond the grid.
    """
    own, others = _sum(calibration), _sum(test)
    n, m = sum(own.values()), sum(others.values())
    rank, reached = math.ceil(round((n + 1) * level, 9)), 0
    if rank > n or not m:
        return None
    for index in sorted(own):
        reached += own[index]
        if reached >= rank:
            if index + 1 >= len(_EDGES):
                return None
            inside = sum(count for other, count in others.items() if other <= index)
            return Pooled(float(_EDGES[index + 1]), inside / m, n, m)
    return None


def _sum(histograms: Sequence[Mapping[int, int]]) -> dict[int, int]:
    total: dict[int, int] = {}
    for one in histograms:
        for index, count in one.items():
            total[index] = total.get(index, 0) + count
    return total
