"""What the papers bound beyond (f, kappa): how far f liars of any size can move rules for which no kappa is known."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from astrofed.server.strategies.robust import build_pipeline

Points = NDArray[np.float64]
LARGEST = float(np.finfo(np.float32).max)
SEEDS = st.integers(0, 2**32 - 1)
COUNTS = st.integers(1, 3)
LOOSE = 1 + 1e-6


def drawn(seed: int, n: int, f: int, d: int = 4) -> tuple[Points, Points]:
    """Return honest points of some spread about some place, and lies: far, colluding, between the honest, or huge."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=d) * 10.0 ** rng.integers(-1, 3) + rng.normal(size=(n - f, d)) * 10.0 ** rng.integers(
        -2, 2
    )
    mean, spread = honest.mean(axis=0), honest.std(axis=0)
    lies = [
        mean + rng.normal(size=(f, d)) * 10.0 ** rng.integers(0, 37),
        np.repeat([mean - rng.uniform(0, 3) * spread], f, axis=0),
        np.repeat(honest[:1] * 1.01 - 0.01 * mean, f, axis=0),
        np.where(rng.random((f, d)) < 0.5, LARGEST, -LARGEST),
    ]
    return honest, np.asarray(lies[int(rng.integers(4))])


def aggregated(
    rule: str, pre: tuple[str, ...], f: int, points: Points, model: Points | None = None, **more: Any
) -> Points:
    options = {
        key: more.pop(key)
        for key in ("clip_norm", "tau", "iterations", "start", "bucket_size", "reference")
        if key in more
    }
    pipeline = build_pipeline(rule, pre, f, options).seeded(3)
    zero = np.zeros(points.shape[1]) if model is None else model
    found = pipeline.aggregate({"w": zero}, [{"w": point} for point in points], **more)
    return np.asarray(found.arrays["w"])


def diameter(points: Points) -> float:
    return float(np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2)).max())


@settings(max_examples=60)
@given(SEEDS, COUNTS)
def test_what_multi_krum_keeps_lies_near_the_honest(seed: int, f: int) -> None:
    """Each kept score is at most the largest honest one, (n - f - 2) D^2, D the honest diameter; a liar has an honest

    update among its n - f - 2 > f - 1 nearest, so that it lies within sqrt(n - f - 2) D of one of them.
    """
    n = 2 * f + 3
    honest, lies = drawn(seed, n, f)
    found = aggregated("multi-krum", (), f, np.concatenate([honest, lies]))
    bound = (np.sqrt(n - f - 2) + 1) * diameter(honest)
    rounding = 1e-9 * float(np.abs(honest).max())
    assert np.linalg.norm(found - honest.mean(axis=0)) <= bound * LOOSE + rounding


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 2))
def test_bulyan_stays_among_the_honest_in_each_coordinate(seed: int, f: int) -> None:
    """El Mhamdi et al. (2018), proposition 2: each coordinate lies within the honest spread of honest values.

    Of the n - 2f selected at most f lie; the median lies among the honest, and of the n - 4f values kept each lies no
    farther from it than the farthest honest value of the selected.
    """
    honest, lies = drawn(seed, 4 * f + 3, f)
    found = aggregated("bulyan", (), f, np.concatenate([lies, honest]))
    low, high = honest.min(axis=0), honest.max(axis=0)
    rounding = 1e-9 * np.abs(honest).max(axis=0)
    assert (found >= low - (high - low) * LOOSE - rounding).all()
    assert (found <= high + (high - low) * LOOSE + rounding).all()


@settings(max_examples=60)
@given(SEEDS, COUNTS, st.floats(1e-2, 10), st.integers(1, 5))
def test_centred_clipping_moves_its_centre_by_tau_an_iteration(seed: int, f: int, tau: float, iterations: int) -> None:
    """Karimireddy et al. (2021), algorithm 2, its update rule: a step is a mean of differences of at most tau."""
    honest, lies = drawn(seed, 3 * f + 2, f)
    model = honest.mean(axis=0)
    points, options = np.concatenate([honest, lies]), {"tau": tau, "iterations": iterations, "start": "model"}
    found = aggregated("centred-clipping", (), f, points, model, **options)
    rounding = 1e-9 * float(np.abs(model).max())
    assert np.linalg.norm(found - model) <= iterations * tau * LOOSE + rounding


@settings(max_examples=60)
@given(SEEDS, COUNTS, st.floats(1e-2, 10))
def test_a_liar_has_no_more_than_tau_over_n_in_a_step_of_centred_clipping(seed: int, f: int, tau: float) -> None:
    honest, lies = drawn(seed, 3 * f + 2, f)
    model, n = honest.mean(axis=0), 3 * f + 2
    options = {"tau": tau, "iterations": 1, "start": "model"}
    lying = aggregated("centred-clipping", (), f, np.concatenate([honest, lies]), model, **options)
    silent = aggregated(
        "centred-clipping", (), f, np.concatenate([honest, np.repeat([model], f, axis=0)]), model, **options
    )
    assert np.linalg.norm(lying - silent) <= f * tau / n * LOOSE + 1e-9 * float(np.abs(model).max())


@settings(max_examples=60)
@given(SEEDS, COUNTS)
def test_trust_gives_no_longer_step_than_the_trusted_one_and_none_against_it(seed: int, f: int) -> None:
    """Cao et al. (2021), equation 4: all have the trusted one's length, no weight is negative; all others lie."""
    honest, lies = drawn(seed, 2 * f + 2, f + 1)
    trusted = honest[:1]
    points = np.concatenate([trusted, lies, -np.sign(trusted) * LARGEST])
    shares = np.eye(1, len(points))[0]
    found = aggregated("fltrust", (), f, points, reference="first", shares=shares)
    length = float(np.linalg.norm(trusted))
    assert np.linalg.norm(found) <= length * LOOSE
    assert float(found @ trusted[0]) >= -1e-6 * length**2


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 2), st.sampled_from(["median", "trimmed-mean"]))
def test_after_bucketing_each_coordinate_lies_among_means_of_honest_buckets(seed: int, f: int, rule: str) -> None:
    """Karimireddy et al. (2022), lemma 1: at most f buckets hold a liar; the others' means lie among the honest."""
    honest, lies = drawn(seed, 4 * f + 2, f)
    found = aggregated(rule, ("bucketing",), f, np.concatenate([lies, honest]), bucket_size=2)
    rounding = 1e-9 * np.abs(honest).max(axis=0)
    assert (found >= honest.min(axis=0) - rounding).all() and (found <= honest.max(axis=0) + rounding).all()


@settings(max_examples=40)
@given(SEEDS, st.floats(1e-3, 10), st.sampled_from(["mean", "median", "trimmed-mean"]), st.integers(3, 7))
def test_clipping_bounds_every_step_whoever_sends_it(seed: int, norm: float, rule: str, huge: int) -> None:
    """Also where huge liars are the majority, and the most central update is one of theirs."""
    rng = np.random.default_rng(seed)
    model = rng.normal(size=5).astype(np.float32)
    honest = model + rng.normal(size=(9 - huge, 5)).astype(np.float32) * np.float32(norm)
    lies = np.where(rng.random((huge, 5)) < 0.9, LARGEST, -LARGEST).astype(np.float32)
    found = aggregated(
        rule, ("clip",), 0 if rule == "mean" else 2, np.concatenate([honest, lies]), model, clip_norm=norm
    )
    reach = norm if rule == "mean" else norm * np.sqrt(5)  # a rule on coordinates may take each from another update
    assert np.linalg.norm(found.astype(np.float64) - model) <= reach * LOOSE + 1e-6 * np.linalg.norm(model)


@pytest.mark.parametrize("huge", [4, 5])
def test_lengths_are_measured_from_the_model_though_most_lie_far_away(huge: int) -> None:
    """The honest keep their whole length: it is not lost in the rounding of the liars'."""
    honest = np.eye(9 - huge, 8, dtype=np.float32) * np.float32(0.5)
    lies = np.full((huge, 8), np.float32(LARGEST))
    points = np.concatenate([honest, lies])
    found = aggregated("mean", ("clip",), 0, points, np.zeros(8, np.float32), clip_norm=1.0)
    expected = (honest.sum(axis=0) + huge * np.full(8, 1 / np.sqrt(8))) / 9
    np.testing.assert_allclose(found, expected, rtol=1e-5)
