"""Compiled passes over the updates, read where they lie: distances, weighted means, and order statistics of columns.

Each kernel works through `pieces`, rows (array, start, stop) of coordinates, so that a piece may go to any thread. Rows
of `addresses` (arrays, n) point at each array's values at the n clients. A block of columns stays in the cache while it
is worked on, and the next is prefetched. Inputs are finite. Compiled once for float32 and float64, then read from disk.
"""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from astrofed.server.aggregation import order, vectors, vectors_sorting
from astrofed.server.aggregation.vectors import (
    COLUMNS,
    LANES,
    REGISTER,
    SOON,
    TILE,
    add_weighted,
    carray,
    mix,
    pointer,
    squares_between,
    squares_within,
)
from astrofed.server.aggregation.vectors_sorting import exchange, load_block, sort_few, sort_mixed
from astrofed.shared import compiling

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
ROWS = 10  # read side by side: of more, the machine does not foresee what is read next
RUN = 2048  # columns that are added in float32
FEW = 32  # rows that fit into registers, or nearly so
NEAR = REGISTER // 2  # rows that are best read into them from where they lie
TINY = 2.0**-86  # sums of squares below this may have lost digits to float32's smallest numbers


_TAKEN_OVER = hashlib.sha256(
    b"".join(Path(str(module.__file__)).read_bytes() for module in (vectors, vectors_sorting, order))
).hexdigest()


def compiled(function: FunctionT, **options: Any) -> FunctionT:
    """Compile; kept on disk until this file or the instructions that it takes over change."""
    return compiling.compiled(function, _TAKEN_OVER, **options)


def summing(function: FunctionT) -> FunctionT:
    """Compile with leave to add in another order, as vector instructions do."""
    return compiled(function, fastmath={"reassoc", "nsz", "contract"})


@summing
def _wide_square(first: int, second: int, width: int, like: Any) -> float:
    """Return the squared distance of two rows in float64, for where float32 has not the range; 0 if they are equal."""
    x, y = carray(pointer(first, like), (width,)), carray(pointer(second, like), (width,))
    total = 0.0
    for c in range(width):
        difference = np.float64(x[c]) - np.float64(y[c])
        total += difference * difference
    return total


@compiled
def _squares(
    at: Any, i: int, j: int, few: int, begin: int, width: int, sums: Any, rows: int, ahead: int, like: Any
) -> None:
    """Put the squared distances of the tile at (i, j), `few` rows wide, into `sums`: see `squares_between`."""
    if i < j:
        if few == 4:
            squares_between(at, i, j, begin, width, sums, rows, ahead, like, 4)
        elif few == 3:
            squares_between(at, i, j, begin, width, sums, rows, ahead, like, 3)
        elif few == 2:
            squares_between(at, i, j, begin, width, sums, rows, ahead, like, 2)
        else:
            squares_between(at, i, j, begin, width, sums, rows, ahead, like, 1)
    elif few == 4:
        squares_within(at, i, j, begin, width, sums, rows, ahead, like, 4)
    elif few == 3:
        squares_within(at, i, j, begin, width, sums, rows, ahead, like, 3)
    elif few == 2:
        squares_within(at, i, j, begin, width, sums, rows, ahead, like, 2)
    else:
        squares_within(at, i, j, begin, width, sums, rows, ahead, like, 1)


@compiled
def add_distances(addresses: Any, pieces: Any, block: int, like: Any, distances: Any) -> None:
    """Add the squared distances between clients over the pieces to `distances` (n, n), above the diagonal.

    Differences and sums over RUN columns are taken in the type of `like` (1,), their sums in float64. Every pair goes
    through the same operations, wherever it stands, so that equal updates have equal distances to any other.
    """
    n, size = addresses.shape[1], like.itemsize
    padded = (n + TILE - 1) // TILE * TILE + SOON
    at, sums = np.empty(padded, np.int64), np.empty((TILE, TILE))
    for array, start, stop in pieces:
        for k in range(padded):
            at[k] = addresses[array, min(k, n - 1)]
        for begin in range(start, stop, block):
            end, soon = min(begin + block, stop), 0
            for i in range(0, n, TILE):
                for j in range(i, n, TILE):
                    for c in range(begin, end, RUN):
                        offset, width = c * size, min(RUN, end - c)
                        whole = width // (REGISTER // size) * (REGISTER // size)
                        _squares(at, i, j, min(TILE, n - j), offset, whole, sums, soon, block * size, like)
                        rest = offset + whole * size
                        for a in range(i, min(i + TILE, n)):
                            for b in range(max(j, a + 1), min(j + TILE, n)):
                                square = sums[a - i, b - j]
                                if not TINY < square < np.inf:
                                    square = _wide_square(at[a] + offset, at[b] + offset, width, like)
                                elif whole < width:
                                    square += _wide_square(at[a] + rest, at[b] + rest, width - whole, like)
                                distances[a, b] += square
                    soon = min(soon + SOON, n)


@compiled
def weighted_sum(addresses: Any, pieces: Any, weights: Any, block: int, like: Any, results: Any) -> None:
    """Write c + sum_k w_k (x_k - c), in float64 until stored; c is the last client, w_k (n - 1,) are the others'."""
    n, size = addresses.shape[1] - 1, like.itemsize
    at, total = addresses[0, :n].copy(), np.empty(block)
    groups = max(1, (n + ROWS - 1) // ROWS)
    for array, start, stop in pieces:
        middle, result = addresses[array, n], results[array]
        at[:] = addresses[array, :n]
        for begin in range(start, stop, block):
            width = min(block, stop - begin)
            whole = width // COLUMNS * COLUMNS
            for group in range(groups):
                rows, shares = at[group * n // groups : (group + 1) * n // groups], weights[group * n // groups :]
                more = (group < groups - 1) + 2 * (group > 0)
                for c in range(0, whole, COLUMNS):
                    add_weighted(rows, shares, (begin + c) * size, middle, total[c:], result, more, like)
            for c in range(begin + whole, begin + width):
                centre = np.float64(carray(pointer(middle + c * size, like), (1,))[0])
                change = 0.0
                for k in range(n):
                    change += weights[k] * (np.float64(carray(pointer(at[k] + c * size, like), (1,))[0]) - centre)
                carray(pointer(result + c * size, like), (1,))[0] = centre + change


@compiled
def _load(addresses: Any, array: int, begin: int, width: int, like: Any, rows: Any) -> None:
    """Copy a block of columns into `rows`, the first `width` of them; ask for the next block if this one is whole."""
    for k in range(addresses.shape[1]):
        address = addresses[array, k] + begin * like.itemsize
        if width == LANES:
            load_block(address, like, rows[k])
        else:
            values, row = carray(pointer(address, like), (width,)), rows[k]
            for c in range(width):
                row[c] = values[c]


@compiled
def _centre(source: Any, centre: int, middle: Any) -> None:
    """Take one row off every row, and put it into `middle`."""
    taken = source[centre].copy()
    for c in range(LANES):
        middle[c] = taken[c]
    for k in range(len(source)):
        row = source[k]
        for c in range(LANES):
            row[c] -= taken[c]


@compiled
def _mix(source: Any, starts: Any, members: Any, weights: Any, common: Any, rows: Any) -> None:
    """Set each row to what all have in common, the last of the sums, plus a sum of its own over rows of `source`."""
    common[:] = 0.0
    for i in range(-1, len(rows)):
        place = i if i >= 0 else len(rows)
        for column in range(0, LANES, COLUMNS):
            if i < 0:
                mix(source, members, weights, starts[place], starts[place + 1], common, column, common)
            else:
                mix(source, members, weights, starts[place], starts[place + 1], common, column, rows[i])


@summing
def _mean_of_ranks(rows: Any, first: int, stop: int, total: Any) -> None:
    """Set `total` to the mean of some rows, by their differences to the first of them."""
    lowest = rows[first]
    total[:] = 0.0
    for k in range(first + 1, stop):
        row = rows[k]
        for c in range(LANES):
            total[c] += np.float64(row[c]) - np.float64(lowest[c])
    for c in range(LANES):
        total[c] = np.float64(lowest[c]) + total[c] / (stop - first)


@summing
def _mean_around_median(rows: Any, keep: int, below: Any, total: Any) -> None:
    """Set `total` to the mean of the `keep` values nearest to each column's median; `rows` are sorted.

    They are neighbours: the lowest goes while the one that would come in lies nearer. `below` counts those that went.
    """
    n = len(rows)
    low, high = rows[(n - 1) // 2], rows[n // 2]
    below[:] = 0.0
    total[:] = 0.0
    for k in range(n - keep):
        leaves, enters = rows[k], rows[k + keep]
        for c in range(LANES):
            median = (np.float64(low[c]) + np.float64(high[c])) / 2
            below[c] += np.float64(np.float64(enters[c]) - median < median - np.float64(leaves[c]))
    for k in range(n):
        row = rows[k]
        for c in range(LANES):
            inside = np.float64(below[c] <= k) * np.float64(k < below[c] + keep)
            total[c] += inside * (np.float64(row[c]) - np.float64(low[c]))
    for c in range(LANES):
        total[c] = np.float64(low[c]) + total[c] / keep


@compiled
def order_statistics(
    addresses: Any,
    pieces: Any,
    exchanges: Any,
    ranks: Any,
    starts: Any,
    members: Any,
    weights: Any,
    centre: int,
    like: Any,
    source: Any,
    rows: Any,
    results: Any,
) -> None:
    """Write an order statistic of each column, of the clients or of weighted means of them.

    `exchanges` (m, 2) sort `rows` as far as needed. `ranks` are the first, the stop, and 0, for the mean of ranks; or
    0, 0 and how many to keep around the median. With a `centre`, a client's index, row i of those sorted is the sum of
    `weights` times the differences of `members` to it, from `starts[i]` to `starts[i + 1]`, and from the last of the
    `starts` but one, which is common to all rows; without, -1.
    """
    first, last, keep = ranks
    total, below, middle = np.zeros(LANES), np.empty(LANES), np.zeros(LANES)
    common = np.empty(LANES, weights.dtype)
    for array, start, stop in pieces:
        for begin in range(start, stop, LANES):
            width = min(LANES, stop - begin)
            if centre < 0:
                _load(addresses, array, begin, width, like, rows)
            else:
                _load(addresses, array, begin, width, like, source)
                _centre(source, centre, middle)
                _mix(source, starts, members, weights, common, rows)
            for q in range(len(exchanges)):
                exchange(rows, exchanges[q, 0], exchanges[q, 1])
            if keep > 0:
                _mean_around_median(rows, keep, below, total)
            else:
                _mean_of_ranks(rows, first, last, total)
            result = carray(pointer(results[array] + begin * like.itemsize, like), (width,))
            for c in range(width):
                result[c] = middle[c] + total[c]


@lru_cache(maxsize=64)
def few_ranks(n: int, first: int, stop: int) -> Callable[..., None]:
    """Return `order_statistics` for the mean of ranks `first` to before `stop` of n rows, n up to FEW.

    It is compiled for these numbers, so that rows are compared in registers; it takes no `exchanges` and no `ranks`.
    """

    @compiled
    def few(
        addresses: Any,
        pieces: Any,
        starts: Any,
        members: Any,
        weights: Any,
        centre: int,
        like: Any,
        source: Any,
        rows: Any,
        results: Any,
    ) -> None:
        total, middle, common = np.zeros(LANES), np.zeros(LANES), np.empty(LANES, weights.dtype)
        at, to = np.empty(n, np.int64), total.ctypes.data
        for k in range(n):
            at[k] = rows[k].ctypes.data
        steps = LANES // (REGISTER // rows.itemsize)
        for array, begin, end in pieces:
            for block in range(begin, end, LANES):
                width = min(LANES, end - block)
                target = results[array] + block * like.itemsize
                if centre < 0:
                    _load(addresses, array, block, width, like, rows)
                    if width == LANES:
                        sort_few(at, 0, steps, target, rows, n, first, stop, like)
                        continue
                else:
                    _load(addresses, array, block, width, like, source)
                    _centre(source, centre, middle)
                    _mix(source, starts, members, weights, common, rows)
                sort_few(at, 0, steps, to, rows, n, first, stop, total)
                result = carray(pointer(target, like), (width,))
                for c in range(width):
                    result[c] = middle[c] + total[c]

    return few


@lru_cache(maxsize=64)
def few_in_place(n: int, first: int, stop: int) -> Callable[..., None]:
    """Return the same as `few_ranks` for rows that are read into registers from where they lie, without mixing.

    It takes (addresses, pieces, like, rows, results).
    """

    @compiled
    def few(addresses: Any, pieces: Any, like: Any, rows: Any, results: Any) -> None:
        size, last = like.itemsize, np.zeros(LANES, like.dtype)
        lanes = REGISTER // size
        at, beside = np.empty(n, np.int64), np.empty(n, np.int64)
        for k in range(n):
            beside[k] = rows[k].ctypes.data
        for array, begin, end in pieces:
            for k in range(n):
                at[k] = addresses[array, k]
            whole = (end - begin) // lanes * lanes
            for task in range(2):  # the whole registers, and what remains
                steps = whole // lanes if task == 0 else 1
                offset, target = begin * size, results[array] + begin * size
                if task == 1:
                    width = end - begin - whole
                    if width == 0:
                        continue
                    _load(addresses, array, begin + whole, width, like, rows)
                    at[:] = beside
                    offset, target = 0, last.ctypes.data
                sort_few(at, offset, steps, target, like, n, first, stop, like)
            if whole < end - begin:
                result = carray(pointer(results[array] + (begin + whole) * size, like), (end - begin - whole,))
                for c in range(len(result)):
                    result[c] = last[c]

    return few


@lru_cache(maxsize=64)
def few_mixed(held: int, n: int, first: int, stop: int) -> Callable[..., None]:
    """Return the same for n mixes of `held` rows, which are kept in registers as soon as they are mixed.

    It takes (addresses, pieces, starts, members, weights, centre, like, rows, results), as `order_statistics` does;
    mixes are summed in the type of `weights`.
    """

    @compiled
    def few(
        addresses: Any,
        pieces: Any,
        starts: Any,
        members: Any,
        weights: Any,
        centre: int,
        like: Any,
        rows: Any,
        results: Any,
    ) -> None:
        size, last = like.itemsize, np.zeros(LANES, like.dtype)
        lanes = REGISTER // size
        at, beside = np.empty(held, np.int64), np.empty(held, np.int64)
        for k in range(held):
            beside[k] = rows[k].ctypes.data
        for array, begin, end in pieces:
            for k in range(held):
                at[k] = addresses[array, k]
            whole = (end - begin) // lanes * lanes
            for task in range(2):  # the whole registers, and what remains
                steps = whole // lanes if task == 0 else 1
                offset, target = begin * size, results[array] + begin * size
                if task == 1:
                    width = end - begin - whole
                    if width == 0:
                        continue
                    _load(addresses, array, begin + whole, width, like, rows)
                    at[:] = beside
                    offset, target = 0, last.ctypes.data
                sort_mixed(at, offset, steps, target, starts, members, weights, centre, like, held, n, first, stop)
            if whole < end - begin:
                result = carray(pointer(results[array] + (begin + whole) * size, like), (end - begin - whole,))
                for c in range(len(result)):
                    result[c] = last[c]

    return few
