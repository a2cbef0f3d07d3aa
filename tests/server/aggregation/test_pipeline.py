"""The pipeline as a whole: against a plain reference, its invariants, its bounds under attack, and its memory."""

import tracemalloc
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from astrofed.server.aggregation.base import Floats, TooFewReplies
from astrofed.server.aggregation.pipeline import Aggregate, Pipeline
from astrofed.server.strategies.robust import build_pipeline

PIPELINES = {
    "mean": ("mean", (), 0),
    "median": ("median", (), 2),
    "trimmed-mean": ("trimmed-mean", (), 2),
    "krum": ("krum", (), 2),
    "multi-krum": ("multi-krum", (), 2),
    "nnm + mean": ("mean", ("nnm",), 0),
    "nnm + median": ("median", ("nnm",), 2),
    "nnm + trimmed-mean": ("trimmed-mean", ("nnm",), 2),
    "nnm + krum": ("krum", ("nnm",), 2),
    "nnm + nnm + multi-krum": ("multi-krum", ("nnm", "nnm"), 2),
    "mean-around-median": ("mean-around-median", (), 2),
    "bulyan": ("bulyan", (), 1),
    "geometric-median": ("geometric-median", (), 2),
    "mda": ("mda", (), 2),
    "arc + nnm + geometric-median": ("geometric-median", ("arc", "nnm"), 2),
    "arc + trimmed-mean": ("trimmed-mean", ("arc",), 2),
    "centred-clipping": ("centred-clipping", (), 2),
    "nnm + centred-clipping": ("centred-clipping", ("nnm",), 2),
    "clip + median": ("median", ("clip",), 2),
}
OPTIONS: dict[str, dict[str, Any]] = {"clip + median": {"clip_norm": 5.0}}
ROBUST = [name for name, (_, _, f) in PIPELINES.items() if f]
FREE = [name for name in PIPELINES if "arc" not in name and "clip" not in name]  # know no place and no length


def pipeline(name: str) -> Pipeline:
    rule, pre, f = PIPELINES[name]
    return build_pipeline(rule, pre, f, OPTIONS.get(name, {}))


def aggregate(name: str, models: NDArray[Any], reference: NDArray[Any] | None = None) -> Aggregate:
    old = np.zeros(models.shape[1:], models.dtype) if reference is None else reference
    return pipeline(name).aggregate({"w": old}, [{"w": model} for model in models])


def result(name: str, models: NDArray[Any], reference: NDArray[Any] | None = None) -> NDArray[Any]:
    return aggregate(name, models, reference).arrays["w"]


def random_models(seed: int, n: int = 11, d: int = 40, dtype: Any = np.float64) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


# A plain reference in extended precision, from each paper's definition.
def plain_distances(x: NDArray[Any]) -> NDArray[Any]:
    return np.array([[((a - b) ** 2).sum() for b in x] for a in x])


def plain_krum_order(x: NDArray[Any], f: int) -> NDArray[Any]:
    scores = [np.sort(np.delete(row, i))[: len(x) - f - 2].sum() for i, row in enumerate(plain_distances(x))]
    return np.argsort(np.array(scores), kind="stable")


def plain_bulyan(x: NDArray[Any], f: int) -> NDArray[Any]:
    remaining, chosen = list(range(len(x))), []
    for _ in range(len(x) - 2 * f):
        near = np.sort(plain_distances(x[remaining]), axis=1)[:, 1:]
        scores = near[:, : max(1, len(remaining) - f - 2)].sum(axis=1)
        chosen.append(remaining.pop(int(np.lexsort((near.sum(axis=1), scores))[0])))
    return plain_around_median(x[chosen], len(chosen) - 2 * f)


def plain_around_median(x: NDArray[Any], keep: int) -> NDArray[Any]:
    order = np.argsort(np.abs(x - np.median(x, axis=0)), axis=0)[:keep]
    return np.asarray(np.take_along_axis(x, order, axis=0).mean(axis=0))


def plain_geometric_median(x: NDArray[Any], f: int) -> NDArray[Any]:
    v = np.median(x, axis=0)
    for _ in range(2000):
        inverse = 1 / np.sqrt(((x - v) ** 2).sum(axis=1))
        v = inverse @ x / inverse.sum()
    return np.asarray(v)


def plain_mda(x: NDArray[Any], f: int) -> NDArray[Any]:
    distances = plain_distances(x)
    sets = [list(chosen) for chosen in combinations(range(len(x)), len(x) - f)]
    return np.asarray(
        x[min(sets, key=lambda s: (distances[np.ix_(s, s)].max(), distances[np.ix_(s, s)].sum()))].mean(axis=0)
    )


def plain_clipping(x: NDArray[Any], f: int) -> NDArray[Any]:
    """From no step before, as in the first round."""
    v = np.zeros_like(x[0])
    for _ in range(3):
        far = np.sqrt(((x - v) ** 2).sum(axis=1))
        v = v + ((x - v) * np.minimum(1, np.sort(far)[len(x) - 2 * f - 1] / far)[:, None]).mean(axis=0)
    return np.asarray(v)


def plain_arc(x: NDArray[Any], f: int) -> NDArray[Any]:
    lengths = np.sqrt((x**2).sum(axis=1))
    bound = np.sort(lengths)[::-1][2 * f * (len(x) - f) // len(x)]
    return np.asarray(x * np.minimum(1, bound / lengths)[:, None])


def plain_clip(x: NDArray[Any], f: int) -> NDArray[Any]:
    return np.asarray(x * np.minimum(1, 5 / np.sqrt((x**2).sum(axis=1)))[:, None])


def plain_nnm(x: NDArray[Any], f: int) -> NDArray[Any]:
    return np.stack([x[np.argsort(row, kind="stable")[: len(x) - f]].mean(axis=0) for row in plain_distances(x)])


PLAIN: dict[str, Callable[[NDArray[Any], int], NDArray[Any]]] = {
    "mean": lambda x, f: x.mean(axis=0),
    "median": lambda x, f: np.median(x, axis=0),
    "trimmed-mean": lambda x, f: np.sort(x, axis=0)[f : len(x) - f].mean(axis=0),
    "krum": lambda x, f: x[plain_krum_order(x, f)[0]],
    "multi-krum": lambda x, f: x[plain_krum_order(x, f)[: len(x) - f]].mean(axis=0),
    "mean-around-median": lambda x, f: plain_around_median(x, len(x) - f),
    "bulyan": plain_bulyan,
    "geometric-median": plain_geometric_median,
    "mda": plain_mda,
    "centred-clipping": plain_clipping,
}
PLAIN_PRE = {"nnm": plain_nnm, "arc": plain_arc, "clip": plain_clip}


def plain(name: str, models: NDArray[Any], reference: float = 0.0) -> NDArray[Any]:
    rule, pre, f = PIPELINES[name]
    x = models.astype(np.longdouble) - reference
    for stage in pre:
        x = PLAIN_PRE[stage](x, f)
    return PLAIN[rule](x, f) + reference


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_agrees_with_the_papers_definition(name: str, dtype: Any) -> None:
    models = random_models(1, dtype=dtype)
    found = result(name, models)
    assert found.dtype == dtype
    rtol, atol = 2 * np.finfo(dtype).eps, 1e-8 if dtype == np.float32 else 1e-15  # of distances squared in float32
    if "+" in name and dtype == np.float32:
        atol = 2e-7  # mixes are sorted in float32, as differences from the most central update
    if "geometric" in name:
        atol = 1e-5  # it stops when it has settled
    np.testing.assert_allclose(found, plain(name, models).astype(dtype), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("reference_offset", [0.0, 1000.0])
def test_small_updates_of_large_weights_are_not_lost(name: str, reference_offset: float) -> None:
    """Weights about 1000 with updates 1e-4 apart: relative error of the change at most 1e-6 in float64."""
    rng = np.random.default_rng(5)
    models = 1000 + 1e-4 * rng.normal(size=(9, 3_000))
    change = result(name, models, np.full(3_000, reference_offset)) - 1000
    expected = np.asarray(plain(name, models, reference_offset) - 1000, np.float64)
    assert np.linalg.norm(change - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["krum", "multi-krum", "nnm + krum"])
def test_an_outlier_is_never_picked_where_float32_distances_cancel(name: str) -> None:
    """The case where distances from the weights, in float32, picked the outlier in a quarter of the trials."""
    for trial in range(20):
        rng = np.random.default_rng(trial)
        base = rng.normal(size=2_000).astype(np.float32)
        models = base + (1e-4 * rng.normal(size=(9, 2_000))).astype(np.float32)
        models[trial % 9] += np.float32(1e-3)
        weights = aggregate(name, models, base).weights
        assert weights is not None and weights[trial % 9] == 0


@pytest.mark.parametrize("name", [name for name in PIPELINES if name != "clip + median"])
def test_agreeing_clients_get_exactly_what_they_agree_on(name: str) -> None:
    model = random_models(2, n=1, dtype=np.float32)
    assert (result(name, np.repeat(model, 9, axis=0), 3 * model[0]) == model[0]).all()


@pytest.mark.parametrize("name", [name for name in PIPELINES if "nnm + nnm" not in name])
@given(seed=st.integers(0, 10_000), n=st.integers(7, 13))
@settings(max_examples=15, deadline=None)
def test_the_order_of_the_clients_does_not_matter(name: str, seed: int, n: int) -> None:
    """Up to ties: mixed updates are often equal, and two groups of them may have the same score."""
    models = random_models(seed, n)
    if "nnm" in name and "krum" in name:
        mixed = plain_nnm(models, 2)
        scores = np.sort(plain_distances(mixed), axis=1)[:, 1 : n - 3].sum(axis=1)
        best = mixed[np.isclose(scores, scores.min(), rtol=1e-9)]
        assume(np.allclose(best, best[0]))
    order = np.random.default_rng(seed + 1).permutation(n)
    one, other = aggregate(name, models), aggregate(name, models[order])
    np.testing.assert_allclose(one.arrays["w"], other.arrays["w"], rtol=1e-12, atol=1e-6 if "geo" in name else 1e-14)
    if one.weights is not None and other.weights is not None:
        np.testing.assert_allclose(one.weights[order], other.weights, atol=1e-6 if "geometric" in name else 1e-14)
        assert {int(order[i]) for i in other.left_out} == set(one.left_out)


@pytest.mark.parametrize("name", FREE)
@given(seed=st.integers(0, 10_000), shift=st.floats(-1e3, 1e3), scale=st.floats(1e-3, 1e3))
@settings(max_examples=15, deadline=None)
def test_shifting_and_scaling_all_models_shifts_and_scales_the_result(
    name: str, seed: int, shift: float, scale: float
) -> None:
    """Also where only the replies move and the global model stays: no rule here knows an absolute length."""
    models = random_models(seed)
    expected = scale * result(name, models) + shift
    np.testing.assert_allclose(result(name, scale * models + shift), expected, atol=1e-9 * (scale + abs(shift)))


@pytest.mark.parametrize("name", ROBUST)
@given(
    seed=st.integers(0, 10_000),
    liars=st.lists(st.integers(0, 8), min_size=1, max_size=2, unique=True),
    size=st.sampled_from([1.0, 1e3, 1e20, float(np.finfo(np.float32).max)]),
    alike=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_f_arbitrary_replies_of_any_size_move_the_model_a_bounded_way(
    name: str, seed: int, liars: list[int], size: float, alike: bool
) -> None:
    """The result stays within a few diameters of the honest, however far off the liars are."""
    rng = np.random.default_rng(seed)
    models = rng.normal(size=(9, 30)).astype(np.float32)
    honest = np.delete(models, liars, axis=0).astype(np.float64)
    for liar in liars:
        direction = 1.0 if alike else rng.choice([-1.0, 1.0], size=30)
        models[liar] = np.float32(size) * direction
    found = result(name, models, rng.normal(size=30).astype(np.float32))
    assert np.isfinite(found).all()
    diameter = np.sqrt(plain_distances(honest).max())
    assert np.linalg.norm(found - honest.mean(axis=0)) <= 3 * diameter


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_liars_far_away_are_left_out_and_the_rest_averaged(seed: int) -> None:
    """With the liars out, Multi-Krum is the plain mean of the honest."""
    models = random_models(seed, n=9)
    models[[2, 5]] += 1e6
    found = aggregate("multi-krum", models)
    np.testing.assert_allclose(found.arrays["w"], np.delete(models, [2, 5], axis=0).mean(axis=0), atol=1e-12)
    assert set(found.left_out) == {2, 5}
    assert "multi-krum left it out: distance 6.32e+06 from the new model, largest kept" in found.left_out[2]


def test_weights_say_who_is_in_the_model() -> None:
    models = random_models(7, n=9)
    models[4] -= 1e5
    for name in ("mean", "multi-krum", "nnm + krum", "nnm + nnm + multi-krum"):
        found = aggregate(name, models)
        assert found.weights is not None and found.weights.sum() == pytest.approx(1)
        np.testing.assert_allclose(found.weights @ models, found.arrays["w"], atol=1e-9 * 1e5)
        assert (found.weights[4] == 0) == (name != "mean") == (4 in found.left_out)
    assert aggregate("nnm + median", models).weights is None


def test_shares_weigh_the_mean() -> None:
    models = random_models(8, n=3)
    shares: Floats = np.array([0.5, 0.25, 0.25])
    found = pipeline("mean").aggregate({"w": np.zeros(40)}, [{"w": model} for model in models], shares)
    np.testing.assert_allclose(found.arrays["w"], shares @ models, atol=1e-14)


def test_counters_and_flags_take_the_median_reply() -> None:
    """A mean would make a counter of batches a fraction, and one liar could set it to anything."""
    old: dict[str, NDArray[Any]] = {"w": np.zeros(2, np.float32), "steps": np.array(0), "on": np.array([True, False])}
    steps, on = [5, 7, 6, 2**60, 6], [[True, True], [True, False], [False, True], [True, True], [True, False]]
    replies = [{"w": old["w"], "steps": np.array(s), "on": np.array(o)} for s, o in zip(steps, on, strict=True)]
    found = pipeline("krum").aggregate(old, replies + replies[:2])
    assert found.arrays["steps"].item() == 6 and found.arrays["steps"].dtype == np.int64
    assert found.arrays["on"].tolist() == [True, True] and list(found.arrays) == list(old)
    even = build_pipeline("median", (), 1, {}).aggregate(old, replies[:4])
    assert even.arrays["steps"].item() == 6


def test_too_few_replies_are_refused_with_the_number_needed() -> None:
    with pytest.raises(TooFewReplies, match="6 usable replies; krum needs 7 to withstand f = 2"):
        aggregate("krum", random_models(0, n=6))
    with pytest.raises(TooFewReplies, match="0 usable replies; mean needs 1"):
        aggregate("mean", np.empty((0, 3)))


@pytest.mark.parametrize("name", PIPELINES)
def test_memory_beyond_the_replies_is_the_result_and_a_few_blocks(name: str) -> None:
    """The stack of all replies would be 64 MB here, and in float64 128 MB."""
    d = 2_000_000
    base = np.random.default_rng(0).normal(size=d).astype(np.float32)
    replies = [{"w": base * np.float32(1 + 0.01 * i)} for i in range(8)]
    pipeline(name).aggregate({"w": base}, replies)  # compiled, or read from the disk
    tracemalloc.start()
    pipeline(name).aggregate({"w": base}, replies)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= base.nbytes + 4 * (1 << 20)
