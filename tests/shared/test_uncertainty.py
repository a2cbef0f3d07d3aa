"""Scores against their definitions, and conformal intervals against what they promise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from astrofed.shared.uncertainty import (
    conformal_factor,
    gaussian_crps,
    gaussian_nll,
    half_width,
    histogram,
    mixture,
    pooled_conformal,
)

numbers = st.floats(-5, 5)


@given(numbers, st.floats(0.05, 5), numbers)
@settings(max_examples=40, deadline=None)
def test_crps_is_the_integral_of_its_definition(mean: float, spread: float, truth: float) -> None:
    """∫ (F(x) − 1[x ≥ y])² dx, on a fine grid."""
    x = torch.linspace(-60, 60, 400_001, dtype=torch.float64)
    cumulative = 0.5 * (1 + torch.special.erf((x - mean) / spread / math.sqrt(2)))
    expected = torch.trapezoid((cumulative - (x >= truth).double()).square(), x)
    args = [torch.tensor(v, dtype=torch.float64) for v in (mean, spread, truth)]
    assert float(gaussian_crps(*args)) == pytest.approx(float(expected), abs=5e-4)


def test_the_likelihood_is_that_of_torch() -> None:
    mean, truth, spread = torch.randn(50), torch.randn(50), torch.rand(50) + 0.1
    expected = -torch.distributions.Normal(mean, spread).log_prob(truth)
    torch.testing.assert_close(gaussian_nll(mean, spread, truth), expected)


def test_half_widths_are_the_tables() -> None:
    assert half_width(0.9) == pytest.approx(1.6448536, abs=1e-6)
    assert half_width(0.5) == pytest.approx(0.6744898, abs=1e-6)


def test_a_mixture_has_the_moments_of_its_draws() -> None:
    means, spreads = torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [0.5]])
    mean, spread = mixture(means, spreads)
    assert float(mean) == 1.5
    assert float(spread) == pytest.approx(math.sqrt((1 + 0.25) / 2 + 1.5**2))
    alone = mixture(means[:1], spreads[:1])
    assert float(alone[0]) == 0.0 and float(alone[1]) == 1.0


@pytest.mark.parametrize(("count", "rank"), [(9, 9), (10, 10), (19, 18), (99, 90), (100, 91)])
def test_the_factor_is_the_corrected_order_statistic(count: int, rank: int) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    assert conformal_factor(scores, 0.9) == rank


def test_too_few_scores_promise_nothing() -> None:
    assert conformal_factor(np.arange(8.0), 0.9) is None
    assert conformal_factor(np.array([]), 0.9) is None


@pytest.mark.parametrize("count", [9, 25, 200])
def test_coverage_is_at_least_the_level_whatever_the_scores(count: int) -> None:
    """Over 4000 draws of a heavy-tailed score; the theorem says at least 0.9 and less than 0.9 + 1 / (n + 1)."""
    rng = np.random.default_rng(count)
    draws = np.abs(rng.standard_t(2, size=(4000, count + 1)))
    hits = [row[-1] <= (conformal_factor(row[:-1], 0.9) or 0.0) for row in draws]
    slack = 3 * math.sqrt(0.09 / 4000)
    assert 0.9 - slack <= np.mean(hits) <= 0.9 + 1 / (count + 1) + slack


@given(st.lists(st.lists(st.floats(0.06, 40), min_size=1, max_size=40), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_pooling_counts_gives_the_pooled_factor_at_most_one_bin_too_large(sites: list[list[float]], seed: int) -> None:
    test = np.random.default_rng(seed).uniform(0.06, 40, 30)
    pooled = pooled_conformal([histogram(np.array(s)) for s in sites], [histogram(test)])
    exact = conformal_factor(np.concatenate([np.array(s) for s in sites]))
    if exact is None:
        assert pooled is None
        return
    assert pooled is not None
    assert exact <= pooled.factor * (1 + 1e-9) and pooled.factor <= 1.06 * exact
    assert pooled.coverage == pytest.approx(np.mean(test <= pooled.factor))
    assert (pooled.calibration, pooled.test) == (sum(map(len, sites)), 30)


def test_beyond_the_grid_nothing_is_promised() -> None:
    assert pooled_conformal([histogram(np.full(20, 1e4))], [histogram(np.ones(3))]) is None
    assert pooled_conformal([histogram(np.ones(20))], []) is None
