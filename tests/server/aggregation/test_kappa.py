"""(f, kappa)-robustness, the inequality of Allouah et al. (2023), "Fixing by mixing", AISTATS, definition 2.

For every set S of n - f of the inputs, ||R(x) - mean_S||^2 <= kappa / |S| * sum over S of ||x_i - mean_S||^2: whichever
f of the inputs lie, the result stays near the mean of the others, by their own spread.
"""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from astrofed.server.strategies.robust import build_pipeline

Points = NDArray[np.float64]


def ratio(n: int, f: int) -> float:
    return f / (n - 2 * f)


def median(n: int, f: int) -> float:
    return 4 * (1 + ratio(n, f)) ** 2


def mixed(kappa: Callable[[int, int], float]) -> Callable[[int, int], float]:
    """Allouah et al. (2023), theorem 1: mixing of nearest neighbours before a rule."""
    return lambda n, f: 8 * f / (n - f) * (kappa(n, f) + 1)


def shortened(kappa: Callable[[int, int], float]) -> Callable[[int, int], float]:
    """Allouah et al. (2025), "Adaptive gradient clipping", ICLR, theorem 3.2: ARC before a rule."""
    return lambda n, f: 3 * kappa(n, f)


def krum(n: int, f: int) -> float:
    return 6 * (1 + ratio(n, f))


# The papers' kappa for (n, f). Of the last two no paper gives one; it follows in a few lines. For MDA: the set kept and
# S share a point and each has at most S's diameter, so f pairs are exchanged over 2 diameters at most, and a squared
# diameter is at most twice the sum of squares. Around the median: f values are exchanged for such as lie nearer to it.
KAPPA: dict[str, tuple[str, tuple[str, ...], Callable[[int, int], float]]] = {
    "trimmed mean": ("trimmed-mean", (), lambda n, f: 6 * ratio(n, f) * (1 + ratio(n, f))),
    "median": ("median", (), median),
    "geometric median": ("geometric-median", (), median),
    "krum": ("krum", (), krum),
    "nnm + krum": ("krum", ("nnm",), mixed(krum)),
    "nnm + median": ("median", ("nnm",), mixed(median)),
    "nnm + geometric median": ("geometric-median", ("nnm",), mixed(median)),
    "arc + krum": ("krum", ("arc",), shortened(krum)),
    "arc + nnm + geometric median": ("geometric-median", ("arc", "nnm"), shortened(mixed(median))),
    "mda": ("mda", (), lambda n, f: 8 * f**2 / (n - f)),
    "mean around median": ("mean-around-median", (), lambda n, f: 4 * f / (n - f) * (1 + median(n, f))),
}


def honest_points(rng: np.random.Generator, n: int, d: int) -> Points:
    kind = rng.integers(4)
    points = rng.normal(size=(n, d)) * 10.0 ** rng.integers(-3, 3)
    if kind == 1:
        points[: n // 2] += 5 * rng.normal(size=d)  # two camps
    elif kind == 2:
        points *= rng.exponential(size=(n, 1)) ** 3  # very different lengths
    elif kind == 3:
        points = np.repeat(points[: n // 3 + 1], 3, axis=0)[:n]  # several that are equal
    return points


def lies(rng: np.random.Generator, honest: Points, f: int) -> Points:
    mean, spread = honest.mean(axis=0), honest.std(axis=0)
    kind = rng.integers(6)
    if kind == 0:
        return np.asarray(mean + rng.normal(size=(f, len(mean))) * 10.0 ** rng.integers(0, 30))
    if kind == 1:
        return np.repeat([mean - rng.uniform(0, 4) * spread], f, axis=0)  # as ALIE does
    if kind == 2:
        return np.repeat([-rng.uniform(0, 4) * mean], f, axis=0)  # as IPM does
    if kind == 3:
        return np.repeat(honest[[rng.integers(len(honest))]], f, axis=0)  # as mimic does
    if kind == 4:
        return np.asarray(
            np.repeat([honest[np.argmax(((honest - mean) ** 2).sum(axis=1))] * 1.01 - 0.01 * mean], f, axis=0)
        )
    return rng.normal(size=(f, len(mean))) * spread + mean


@pytest.mark.parametrize("name", KAPPA)
@pytest.mark.parametrize(("n", "f"), [(5, 1), (9, 2), (9, 3), (11, 4), (7, 2)])
def test_the_result_stays_near_the_mean_of_any_n_minus_f_by_their_own_spread(name: str, n: int, f: int) -> None:
    rule, pre, kappa = KAPPA[name]
    pipeline = build_pipeline(rule, pre, f, {})
    rng = np.random.default_rng(n + 100 * f)
    sets = np.array(list(combinations(range(n), n - f)))
    for _ in range(60):
        honest = honest_points(rng, n - f, int(rng.integers(1, 6)))
        points = np.concatenate([honest, lies(rng, honest, f)])[rng.permutation(n)]
        found = pipeline.aggregate({"w": np.zeros(points.shape[1])}, [{"w": p} for p in points]).arrays["w"]
        means = points[sets].mean(axis=1)
        variances = ((points[sets] - means[:, None]) ** 2).sum(axis=2).mean(axis=1)
        errors = ((found - means) ** 2).sum(axis=1)
        rounding = 1e-18 * (means**2).sum(axis=1)
        assert (errors <= kappa(n, f) * variances * (1 + 1e-6) + rounding).all(), points


@pytest.mark.parametrize("name", KAPPA)
def test_without_liars_to_withstand_nothing_is_lost(name: str) -> None:
    """kappa is 0 at f = 0 where the papers' formula says so: then the rule is the mean."""
    rule, pre, kappa = KAPPA[name]
    points = np.random.default_rng(0).normal(size=(8, 3))
    found = build_pipeline(rule, pre, 0, {}).aggregate({"w": np.zeros(3)}, [{"w": p} for p in points]).arrays["w"]
    if kappa(8, 0) == 0:
        np.testing.assert_allclose(found, points.mean(axis=0), atol=1e-6)
    else:
        assert np.linalg.norm(found - points.mean(axis=0)) < np.linalg.norm(points.std(axis=0))
