"""Compiled passes against numpy: any number of clients and coordinates, ties, extremes of float32, memory, threads."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from astrofed.server.aggregation import passes
from astrofed.server.aggregation.base import MeanAroundMedian, MeanOfRanks
from astrofed.server.aggregation.rules_coordinate import mean_around_median
from astrofed.server.aggregation.updates import Updates

Values = NDArray[Any]
LARGEST = float(np.finfo(np.float32).max)


def updates_of(rows: Values) -> Updates:
    return Updates({"w": rows[0]}, [{"w": row} for row in rows])


def statistic(rows: Values, reduction: MeanOfRanks | MeanAroundMedian, *more: Any, wide: bool = False) -> Values:
    result = {"w": np.full(rows.shape[1:], np.nan, rows.dtype)}
    passes.order_statistic(updates_of(rows), list(range(len(rows))), reduction, result, *more, wide=wide)
    return result["w"]


def drawn(kind: str, n: int, d: int, dtype: Any = np.float32) -> Values:
    rng = np.random.default_rng(n * d)
    rows = rng.normal(size=(n, d)).astype(dtype)
    if kind == "tied":
        return np.round(rows).astype(dtype)
    if kind == "denormal":
        return (rows.astype(np.float64) * 1e-42).astype(dtype)
    if kind == "huge":
        return (np.sign(rows) * np.where(rng.random((n, d)) < 0.5, LARGEST, LARGEST / 3)).astype(dtype)
    if kind == "zeros":
        return np.copysign(np.zeros_like(rows), rows)
    return rows


KINDS = ("random", "tied", "denormal", "huge", "zeros")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d"), [(1, 5), (2, 127), (3, 129), (10, 4_099), (31, 257), (64, 1), (128, 131)])
def test_ranks_and_windows_are_those_of_sorted_values(kind: str, dtype: Any, n: int, d: int) -> None:
    rows = drawn(kind, n, d, dtype)
    ordered = np.sort(rows.astype(np.float64), axis=0)
    eps = 2 * float(np.finfo(dtype).eps)
    size = float(np.abs(ordered).max())
    for first, stop in {(0, n), ((n - 1) // 2, n // 2 + 1), (n // 5, n - n // 5)}:
        expected = ordered[first:stop].mean(axis=0)
        found = statistic(rows, MeanOfRanks(first, stop))
        np.testing.assert_allclose(found, expected, rtol=eps, atol=1e-14 * size + 1.5e-45)
    keep = max(1, n - n // 4)
    expected = mean_around_median(rows.astype(np.float64), keep)
    found = statistic(rows, MeanAroundMedian(keep))
    np.testing.assert_allclose(found, expected, rtol=eps, atol=1e-14 * size + 1.5e-45)


@pytest.mark.parametrize("n", range(1, 129, 3))
def test_every_number_of_clients_has_a_network(n: int) -> None:
    rows = drawn("random", n, 300)
    found = statistic(rows, MeanOfRanks((n - 1) // 2, n // 2 + 1))
    np.testing.assert_allclose(found, np.median(rows.astype(np.float64), axis=0), rtol=3e-7, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "dtype"), [(3, np.float32), (7, np.float64), (10, np.float32), (19, np.float32)])
def test_few_rows_sorted_in_registers_give_the_same(
    kind: str, n: int, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, mixing = drawn(kind, n, 1_029, dtype), np.kron(np.eye(n), [[0.5, 0.5]])[:, :n] * 2 / 3 + 1 / (3 * n)
    mixing /= mixing.sum(axis=1, keepdims=True)
    reduction, wide = MeanOfRanks(n // 4, n - n // 4), kind == "huge"
    many = [statistic(rows, reduction), statistic(rows, reduction, mixing, 0, wide=wide)]
    monkeypatch.setattr(passes, "MANY", 1)
    few = [statistic(rows, reduction), statistic(rows, reduction, mixing, 0, wide=wide)]
    eps, size = float(np.finfo(dtype).eps), float(np.abs(rows).max())
    for some, others, rounding in zip(few, many, (1e-15, 1e-15 if wide else eps), strict=True):
        np.testing.assert_allclose(some, others, rtol=4 * eps, atol=rounding * size + 1.5e-45)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mixing", [np.kron(np.eye(5), [[0.5, 0.5]]), np.diag(np.linspace(0.1, 1, 10)), np.eye(10)[:9]])
def test_mixes_of_one_or_two_are_summed_in_the_arrays_own_type(
    mixing: Values, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buckets of two, and updates made shorter, whose rest is the model's, the last row."""
    monkeypatch.setattr(passes, "MANY", 1)
    rows = 1000 + drawn("random", 11, 1_029, dtype)
    whole = np.hstack([mixing, 1 - mixing.sum(axis=1, keepdims=True)])
    expected = np.sort(whole @ rows.astype(np.float64), axis=0)[1:4].mean(axis=0)
    found = statistic(rows, MeanOfRanks(1, 4), whole, 10)
    np.testing.assert_allclose(found, expected, rtol=float(np.finfo(dtype).eps), atol=1e-12)


@pytest.mark.parametrize("mixing", [None, np.eye(3)])
def test_few_rows_in_pieces_of_every_length(mixing: Values | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays end within a register, and none of them is written beyond its end."""
    monkeypatch.setattr(passes, "MANY", 1)
    sizes = [1, 7, 8, 9, 31, 64, 127, 128, 129, 257]
    models = [{str(size): drawn("random", 1, size)[0] * k for size in sizes} for k in (1, -2, 3)]
    room = {str(size): np.full(size + 9, np.nan, np.float32) for size in sizes}
    result = {name: array[:-9] for name, array in room.items()}
    centre = -1 if mixing is None else 0
    passes.order_statistic(Updates(models[0], models), [0, 1, 2], MeanOfRanks(1, 2), result, mixing, centre)
    for name, array in result.items():
        median = np.median([model[name] for model in models], axis=0)
        np.testing.assert_allclose(array, median, rtol=0 if mixing is None else 3e-7)
        assert np.isnan(room[name][-9:]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 1), (3, 65), (5, 7), (7, 130), (8, 99), (10, 5_001), (33, 2_049)])
def test_distances_have_the_range_of_float64(kind: str, dtype: Any, n: int, d: int) -> None:
    """Squares of float32's largest value overflow in float32, those of its smallest vanish."""
    rows = drawn(kind, n, d, dtype)
    wide = rows.astype(np.float64)
    expected = np.array([[((a - b) ** 2).sum() for b in wide] for a in wide])
    np.testing.assert_allclose(passes.distances(updates_of(rows)), expected, rtol=1e-6, atol=0)


def test_equal_updates_are_equally_far_from_any_other_wherever_they_stand() -> None:
    """Ties go to the first; were a distance to depend on the place in a tile, rounding would decide them."""
    rows = drawn("random", 13, 5_003)
    rows[[3, 7, 8, 12]] = rows[0]
    found = passes.distances(updates_of(rows))
    assert (found[[3, 7, 8, 12]] == found[0]).all() and (found == found.T).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d"), [(2, 1), (3, 1_025), (9, 4_099), (30, 1_024)])
def test_weighted_means_are_those_of_float64(dtype: Any, n: int, d: int) -> None:
    rows = 1000 + drawn("random", n, d, dtype)
    weights = np.random.default_rng(n).dirichlet(np.ones(n))
    result = {"w": np.empty(d, dtype)}
    passes.weighted_mean(updates_of(rows), list(range(n)), weights, result)
    np.testing.assert_allclose(result["w"], weights @ rows.astype(np.float64), rtol=4 * float(np.finfo(dtype).eps))


def test_mixes_keep_their_digits_beside_an_update_far_away() -> None:
    rows = drawn("random", 9, 1_000)
    rows[4] = -LARGEST
    mixing = np.full((5, 9), 1 / 8)
    mixing[:, 4] = 0
    mixing[1:, :4] += 0.01 * np.array([1, -1, 1, -1])
    expected = np.median(mixing @ np.where(np.arange(9)[:, None] == 4, 0, rows.astype(np.float64)), axis=0)
    found = statistic(rows, MeanOfRanks(2, 3), mixing, 0, wide=True)
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=1e-12)
    rows[4] = 0
    narrow = statistic(rows, MeanOfRanks(2, 3), mixing, 0)
    np.testing.assert_allclose(narrow, expected, rtol=0, atol=2e-7)  # of values about 1 long


def test_what_most_mixes_share_is_summed_once() -> None:
    rng = np.random.default_rng(0)
    rows = drawn("random", 12, 300)
    mixing = np.stack([np.isin(np.arange(12), rng.permutation(12)[:9]) / 9 for _ in range(12)])
    around = passes._around_common(mixing)
    assert np.count_nonzero(around) < np.count_nonzero(mixing)
    np.testing.assert_allclose(around[:-1] + around[-1], mixing)
    expected = np.median(mixing @ rows.astype(np.float64), axis=0)
    np.testing.assert_allclose(statistic(rows, MeanOfRanks(5, 7), mixing, 0), expected, rtol=0, atol=2e-7)
    pairs = np.kron(np.eye(6), [[0.5, 0.5]])  # of buckets nothing is common
    np.testing.assert_array_equal(passes._around_common(pairs), np.vstack([pairs, np.zeros(12)]))


def test_any_memory_is_read_as_what_it_holds() -> None:
    """Read-only, transposed, unaligned, other byte order, float16, empty, and a number alone; nothing is written to."""
    rng = np.random.default_rng(0)
    shapes = {"a": (30, 41), "b": (), "c": (0, 3), "d": (1_000,), "e": (64,)}
    models = [
        {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()} for _ in range(5)
    ]
    odd: list[dict[str, Values]] = []
    for model in models:
        unaligned = np.frombuffer(b"\0" + model["d"].tobytes(), np.float32, offset=1)
        swapped = model["e"].astype(">f4")
        odd.append({**model, "a": np.asfortranarray(model["a"]), "d": unaligned, "e": swapped})
        for array in odd[-1].values():
            array.flags.writeable = False
    result = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    passes.order_statistic(Updates(models[0], odd), list(range(5)), MeanOfRanks(2, 3), result)
    for name in shapes:
        assert (result[name] == np.median([model[name] for model in models], axis=0)).all(), name
    halves = [{"h": model["d"].astype(np.float16)} for model in models]
    half = {"h": np.empty(1_000, np.float16)}
    passes.order_statistic(Updates(halves[0], halves), list(range(5)), MeanOfRanks(2, 3), half)
    assert (half["h"] == np.median([model["h"] for model in halves], axis=0)).all()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads are counted by affinity")
def test_one_thread_and_several_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums must not depend on which thread took which piece."""
    rows = drawn("random", 6, 300_007)
    outcomes = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, threads=threads: set(range(threads)))
        mean = {"w": np.empty(rows.shape[1], np.float32)}
        passes.weighted_mean(updates_of(rows), list(range(6)), np.full(6, 1 / 6), mean)
        trimmed = statistic(rows, MeanOfRanks(1, 5))
        outcomes.append((passes.distances(updates_of(rows)), mean["w"], trimmed))
    for other in outcomes[1:]:
        assert all((a == b).all() for a, b in zip(outcomes[0], other, strict=True))


def test_commands_that_aggregate_nothing_do_not_load_the_compiler() -> None:
    code = "import sys, astrofed.cli, astrofed.server.strategies.robust; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_a_folder_that_cannot_be_written_costs_only_the_cache(tmp_path: Any) -> None:
    """Installed read-only and without a home, numba finds nowhere to keep compiled code, and raises."""
    from numba.core.caching import FunctionCache

    from astrofed.server.aggregation.kernels import compiled

    locators, FunctionCache._impl_class._locator_classes = FunctionCache._impl_class._locator_classes, []
    try:
        assert compiled(_twice)(21) == 42
    finally:
        FunctionCache._impl_class._locator_classes = locators


def _twice(number: int) -> int:
    return 2 * number
