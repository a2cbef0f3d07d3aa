"""Numerical composition of Poisson-sampled Gaussian steps (Gopi, Lee & Wutschitz 2021, arXiv:2106.02848).

The same mesh, privacy loss and error bounds as Opacus' PRV accountant, of whose parts it is made. Different are the
order of the work and its cost: all kinds of steps are multiplied together as spectra, so that one transform back is
enough, each kind's distribution is taken at the mesh's edges once, and the mesh has a length that transforms fast.
"""

import math

import numpy as np
from numpy.typing import NDArray
from opacus.accountants.analysis.prv import (
    DiscretePRV,
    Domain,
    PoissonSubsampledGaussianPRV,
    TruncatedPrivacyRandomVariable,
)
from scipy.fft import irfft, next_fast_len, rfft  # type: ignore[import-untyped]

EPSILON_ERROR = 0.01  # of what is returned; Opacus' choice
DELTA_ERROR = 1e-3  # as a share of delta; Opacus' choice
Steps = tuple[tuple[float, float, int], ...]  # (noise multiplier, sample rate, steps), each pair once


def mesh_width(total_steps: int, delta: float) -> float:
    """Return the distance of the mesh's points for that many steps."""
    return EPSILON_ERROR / math.sqrt(total_steps * math.log(12 / (DELTA_ERROR * delta)) / 2)


def composed_epsilon(steps: Steps, delta: float, reach: float) -> float:
    """Return an upper bound on the epsilon of all steps together.

    Args:
        steps: what is composed.
        delta: at which.
        reach: the privacy loss up to which the mesh has to go, on both sides of 0.

    Raises:
        ValueError, RuntimeError: delta is below the mesh's precision, or the mesh too coarse for a kind of step.
    """
    total = sum(count for _, _, count in steps)
    width = mesh_width(total, delta)
    below = math.ceil(reach / width)  # points below 0
    size = 2 * next_fast_len(below + 1)
    domain = Domain(-below * width, (size - 1 - below) * width, size)
    spectrum: NDArray[np.complex128] = np.ones(size // 2 + 1, dtype=np.complex128)
    shift = 0.0
    for noise, rate, count in steps:
        masses, moved = _discrete(PoissonSubsampledGaussianPRV(rate, noise), domain)
        spectrum *= rfft(masses) ** count
        shift += count * moved
    masses = np.roll(irfft(spectrum, size), -(total - 1) * below % size)
    composed = DiscretePRV(masses, domain.shift_right(shift))
    return float(composed.compute_epsilon(delta, DELTA_ERROR * delta, EPSILON_ERROR)[2])


def _discrete(loss: PoissonSubsampledGaussianPRV, domain: Domain) -> tuple[NDArray[np.float64], float]:
    """Return a step's privacy loss as masses [point], and how far the points have to move to keep its mean."""
    truncated = TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max)
    edges = domain.t_min + domain.dt * (np.arange(domain.size + 1) - 0.5)
    masses = np.diff(truncated.cdf(edges))
    moved = float(truncated.mean() - np.dot(domain.ts, masses))
    if not abs(moved) < domain.dt / 2:
        raise RuntimeError("the mesh is too coarse for a step's mean")
    return masses, moved


def coarser(steps: Steps, most: int) -> Steps:
    """Return at most `most` kinds of steps that together cost at least as much, and not much more.

    Less noise and a higher rate cost more, so two kinds cost no more than both counted with the less noise and the
    higher rate of the two. The pair for which that adds least to the privacy loss' variance goes first.
    """
    noise, rate, count = (np.array(column, dtype=np.float64) for column in zip(*steps, strict=True))
    while len(noise) > most:
        variance = count * _variance(noise, rate)
        less, more = np.minimum.outer(noise, noise), np.maximum.outer(rate, rate)
        added = np.add.outer(count, count) * _variance(less, more) - np.add.outer(variance, variance)
        np.fill_diagonal(added, np.inf)
        first, second = divmod(int(np.argmin(added)), len(noise))
        noise[first], rate[first], count[first] = less[first, second], more[first, second], count[first] + count[second]
        noise, rate, count = (np.delete(column, second) for column in (noise, rate, count))
    return tuple((float(n), float(r), int(c)) for n, r, c in zip(noise, rate, count, strict=True))


def _variance(noise: NDArray[np.float64], rate: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return about the variance of a step's privacy loss, by which costs are compared here and nowhere else."""
    return np.asarray(rate**2 * np.expm1(np.minimum(noise**-2.0, 500.0)))
