"""Whole passes over the updates by compiled code: distances, a weighted mean, or an order statistic of each coordinate.

Coordinates are cut into tasks by their number alone and results added in the tasks' order, so that the result does not
depend on how many threads there are. Importing this module imports numba; do so only where updates are aggregated.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from mmap import MADV_DONTNEED
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astrofed.server.aggregation import kernels, vectors
from astrofed.server.aggregation.base import Floats, MeanAroundMedian, MeanOfRanks
from astrofed.server.aggregation.order import network
from astrofed.server.aggregation.updates import Integers, Segment, Updates

TASKS = 32
GRAIN = 1 << 15  # columns of the smallest task; a multiple of every block
MANY = 1 << 18  # columns from which it pays to compile for one number of rows: half a second, once
PARTIAL_BYTES = 32 << 20  # for the tasks' distances, before they are added
SHORT = 2  # updates of which a mix may be summed in the arrays' own type: one rounding more
CACHE_BYTES = 640 << 10  # of a block whose pairs are compared


def distances(updates: Updates) -> Floats:
    """Return the squared Euclidean distances (n, n) between all updates, with float64's range.

    Float32 differences are taken directly and squares added in float32 over up to 2048 coordinates, then in float64:
    a relative error of some 1e-7, however close together or far from zero the updates lie.
    """
    n = len(updates.replies)
    total = np.zeros((n, n))
    most = max(2, min(TASKS, PARTIAL_BYTES // (8 * n * n)))
    for segment in updates.segments(range(n)):
        block = int(np.clip(CACHE_BYTES // (n * segment.dtype.itemsize) // 256 * 256, 256, 4096))
        parts, calls = [], []
        for pieces in _tasks(segment, most):
            parts.append(np.zeros((n, n)))
            like = np.zeros(1, segment.dtype)
            calls.append(partial(kernels.add_distances, segment.addresses, pieces, block, like, parts[-1]))
        _run(calls, updates)
        for part in parts:
            total += part
    return total + total.T


def weighted_mean(
    updates: Updates, clients: Sequence[int], weights: Floats, result: Mapping[str, NDArray[Any]]
) -> None:
    """Write the weighted mean of some clients; weights sum to 1. Exact in float64 but for the last digit."""
    heaviest = int(np.argmax(weights))
    order = [*np.delete(np.asarray(clients), heaviest).tolist(), clients[heaviest]]
    others = np.delete(weights, heaviest)
    for segment in updates.segments(order, result):
        like = np.zeros(1, segment.dtype)
        call = partial(kernels.weighted_sum, segment.addresses)
        _run([partial(call, pieces, others, 4096, like, segment.results) for pieces in _tasks(segment)], updates)


def order_statistic(
    updates: Updates,
    clients: Sequence[int],
    reduction: MeanOfRanks | MeanAroundMedian,
    result: Mapping[str, NDArray[Any]],
    mixing: Floats | None = None,
    centre: int = -1,
    *,
    wide: bool = False,
) -> None:
    """Write an order statistic of each coordinate: of some clients, or of weighted means of them.

    Args:
        updates: the updates.
        clients: those that are read.
        reduction: what is done to the sorted values.
        result: the new model's arrays.
        mixing: (m, clients) weights of each mean, rows summing to 1.
        centre: the client, by its place in `clients`, from which means are measured, so that they lose no digits.
        wide: keep means in float64, for where differences may leave float32's range; else in the arrays' type.
    """
    count = len(clients) if mixing is None else len(mixing)
    exchanges = network(count, reduction)
    if isinstance(reduction, MeanAroundMedian):
        ranks = np.array([0, 0, reduction.keep])
    else:
        ranks = np.array([reduction.first, reduction.stop, 0])
    weights = np.empty((0, 0)) if mixing is None else _around_common(_without(mixing, centre))
    starts = np.concatenate([[0], np.cumsum(np.count_nonzero(weights, axis=1))]).astype(np.int64)
    members = np.nonzero(weights)[1].astype(np.int64)
    shares = weights[weights != 0]
    short = mixing is not None and np.diff(starts).max() <= SHORT and not np.diff(starts)[-1]
    held = 0 if mixing is None else len(clients)
    for segment in updates.segments(clients, result):
        kind, near = np.dtype(np.float64) if wide and mixing is not None else segment.dtype, False
        like = np.zeros(1, segment.dtype)
        rest: tuple[Any, ...] = (starts, members, shares.astype(kind) if short else shares, centre, like)
        if isinstance(reduction, MeanOfRanks) and count <= kernels.FEW and segment.sizes.sum() >= MANY:
            ends = reduction.first, reduction.stop
            near = kind == segment.dtype and count <= kernels.NEAR
            if near and mixing is None:
                call, rest = partial(kernels.few_in_place(count, *ends), segment.addresses), (like,)
            elif near:
                call = partial(kernels.few_mixed(held, count, *ends), segment.addresses)
            else:
                call = partial(kernels.few_ranks(count, *ends), segment.addresses)
        else:
            call, rest = partial(kernels.order_statistics, segment.addresses), (exchanges, ranks, *rest)
        room = (held or count,) if near else (held, count)
        _run(
            [partial(_with_rows, call, pieces, rest, room, kind, segment.results) for pieces in _tasks(segment)],
            updates,
        )


def _without(mixing: Floats, centre: int) -> Floats:
    """Return weights without those of the row that the others are measured from, whose difference is zero."""
    others = mixing.copy()
    others[:, centre] = 0.0
    return others


def _around_common(mixing: Floats) -> Floats:
    """Return weights (m + 1, n), the last row common to the others: with it each has fewest weights of its own.

    What most rows hold alike is common, so that nothing is added and taken off again that lies far from most.
    """
    common = np.sort(mixing, axis=0)[(len(mixing) - 1) // 2]
    around = np.vstack([mixing - common, common])
    if np.count_nonzero(around) < np.count_nonzero(mixing):
        return around
    return np.vstack([mixing, np.zeros_like(common)])


def _with_rows(
    call: Callable[..., None],
    pieces: Integers,
    rest: tuple[Any, ...],
    room: Sequence[int],
    kind: np.dtype[Any],
    results: Integers,
) -> None:
    """Give each thread rows of its own, as many arrays of so many as `room` says, for as long as it works."""
    call(pieces, *rest, *(_aligned(rows, kind) for rows in room), results)


def _aligned(rows: int, kind: np.dtype[Any]) -> NDArray[Any]:
    """Return zeros (rows, LANES) that begin on a cache line: vectors that straddle two cost almost twice the time."""
    memory = np.zeros(rows * vectors.LANES * kind.itemsize + vectors.LINE, np.uint8)
    start = -memory.__array_interface__["data"][0] % vectors.LINE
    return memory[start : start + rows * vectors.LANES * kind.itemsize].view(kind).reshape(rows, vectors.LANES)


def _tasks(segment: Segment, most: int = TASKS) -> Iterator[Integers]:
    """Yield the pieces of each task: rows (array, start, stop)."""
    share = -(-int(segment.sizes.sum()) // most)
    share = max(1, -(-share // GRAIN)) * GRAIN
    pieces: list[tuple[int, int, int]] = []
    room = share
    for array, size in enumerate(segment.sizes.tolist()):
        start = 0
        while start < size:
            stop = min(size, start + room)
            pieces.append((array, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield np.array(pieces, np.int64)
                pieces, room = [], share
    if pieces:
        yield np.array(pieces, np.int64)


def _run(calls: Sequence[Callable[[], None]], updates: Updates) -> None:
    """Make all calls, by as many threads as there are cores; after each, memory that mirrors files is given back.

    This thread takes part, and each takes calls as it can: handing them out singly takes longer than small ones do.
    """
    waiting, mapped = deque(calls), updates.mappings()

    def work() -> None:
        while True:
            try:
                call = waiting.popleft()
            except IndexError:  # all are taken
                return
            call()
            for each in mapped:
                each.madvise(MADV_DONTNEED)

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    helpers = min(len(calls), cores) - 1
    if helpers < 1:
        work()
        return
    with ThreadPoolExecutor(helpers) as pool:
        working = [pool.submit(work) for _ in range(helpers)]
        work()
        for each in working:
            each.result()
