"""Compiled passes over the updates, read where they lie: distances, weighted means, and order statistics of columns.

Each kernel works through `pieces`, rows (array, start, stop) of coordinates, so that a piece may go to any thread. Rows
of `addresses` (arrays, n) point at each array's values at the n clients. A block of columns stays in the cache while it
is worked on, and the next is prefetched. Inputs are finite. Compiled once for float32 and float64, then read from disk.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
LANES = 128  # columns of a block of order statistics: one comparison of two rows is sixteen vectors of eight
VECTOR = 8
GROUP = 32  # columns that are loaded together: four registers' pairs
generated: Callable[[Callable[..., Any]], Callable[..., Any]] = intrinsic
carray: Callable[..., Any] = cast(Any, numba).carray
code: Any = cgutils
numeric: Any = types
LINE = 64  # bytes of a cache line, over which one is prefetched
TINY = 2.0**-86  # sums of squares below this may have lost digits to float32's smallest numbers


def compiled(function: FunctionT, **options: Any) -> FunctionT:
    """Compile without the interpreter's lock; kept on disk where some folder can be written."""
    try:
        return cast(FunctionT, numba.njit(nogil=True, cache=True, **options)(function))
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return cast(FunctionT, numba.njit(nogil=True, **options)(function))


def summing(function: FunctionT) -> FunctionT:
    """Compile with leave to add in another order, as vector instructions do."""
    return compiled(function, fastmath={"reassoc", "nsz", "contract"})


@generated
def _pointer(typing: Any, address: Any, like: Any) -> Any:
    """Return an address as a pointer to values of the type that the array `like` holds."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return numeric.CPointer(like.dtype)(numeric.int64, like), generate


@generated
def _prefetch(typing: Any, address: Any) -> Any:
    """Ask for a cache line that will be read soon."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = code.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [builder.inttoptr(arguments[0], byte), number(0), number(2), number(1)])
        return context.get_dummy_value()

    return numeric.void(numeric.int64), generate


@generated
def _exchange(typing: Any, rows: Any, i: Any, j: Any) -> Any:
    """Put the smaller of each pair of values into row i, the larger into row j, LANES columns at once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = signature.args[0]
        data = context.make_array(array)(context, builder, arguments[0]).data
        value = context.get_data_type(array.dtype)
        vector, size = ir.VectorType(value, VECTOR).as_pointer(), array.dtype.bitwidth // 8
        lanes = ir.IntType(64)(LANES)
        first, second = (builder.gep(data, [builder.mul(row, lanes)]) for row in arguments[1:])
        for group in range(0, LANES, GROUP):
            pairs = []
            for lane in range(group, group + GROUP, VECTOR):
                low, high = (builder.bitcast(builder.gep(p, [ir.IntType(64)(lane)]), vector) for p in (first, second))
                pairs.append((low, high, builder.load(low, align=size), builder.load(high, align=size)))
            for low, high, x, y in pairs:
                less = builder.fcmp_ordered("<", x, y)
                builder.store(builder.select(less, x, y), low, align=size)
                builder.store(builder.select(less, y, x), high, align=size)
        return context.get_dummy_value()

    return numeric.void(rows, numeric.int64, numeric.int64), generate


@summing
def _squares(at: Any, i: int, j: int, width: int, like: Any, sums: Any) -> None:
    """Put the squared distances between rows i … i + 3 and j … j + 3 of a block into `sums` (4, 4)."""
    x0, x1 = carray(_pointer(at[i], like), (width,)), carray(_pointer(at[i + 1], like), (width,))
    x2, x3 = carray(_pointer(at[i + 2], like), (width,)), carray(_pointer(at[i + 3], like), (width,))
    y0, y1 = carray(_pointer(at[j], like), (width,)), carray(_pointer(at[j + 1], like), (width,))
    y2, y3 = carray(_pointer(at[j + 2], like), (width,)), carray(_pointer(at[j + 3], like), (width,))
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = like[0] - like[0]
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = like[0] - like[0]
    for c in range(width):
        a0, a1, a2, a3 = x0[c], x1[c], x2[c], x3[c]
        b0, b1, b2, b3 = y0[c], y1[c], y2[c], y3[c]
        s00 += (a0 - b0) * (a0 - b0)
        s01 += (a0 - b1) * (a0 - b1)
        s02 += (a0 - b2) * (a0 - b2)
        s03 += (a0 - b3) * (a0 - b3)
        s10 += (a1 - b0) * (a1 - b0)
        s11 += (a1 - b1) * (a1 - b1)
        s12 += (a1 - b2) * (a1 - b2)
        s13 += (a1 - b3) * (a1 - b3)
        s20 += (a2 - b0) * (a2 - b0)
        s21 += (a2 - b1) * (a2 - b1)
        s22 += (a2 - b2) * (a2 - b2)
        s23 += (a2 - b3) * (a2 - b3)
        s30 += (a3 - b0) * (a3 - b0)
        s31 += (a3 - b1) * (a3 - b1)
        s32 += (a3 - b2) * (a3 - b2)
        s33 += (a3 - b3) * (a3 - b3)
    sums[0, 0], sums[0, 1], sums[0, 2], sums[0, 3] = s00, s01, s02, s03
    sums[1, 0], sums[1, 1], sums[1, 2], sums[1, 3] = s10, s11, s12, s13
    sums[2, 0], sums[2, 1], sums[2, 2], sums[2, 3] = s20, s21, s22, s23
    sums[3, 0], sums[3, 1], sums[3, 2], sums[3, 3] = s30, s31, s32, s33


@summing
def _wide_square(first: int, second: int, width: int, like: Any) -> float:
    """Return the squared distance of two rows in float64, for where float32 has not the range; 0 if they are equal."""
    x, y = carray(_pointer(first, like), (width,)), carray(_pointer(second, like), (width,))
    total = 0.0
    for c in range(width):
        difference = np.float64(x[c]) - np.float64(y[c])
        total += difference * difference
    return total


@compiled
def add_distances(addresses: Any, pieces: Any, block: int, like: Any, distances: Any) -> None:
    """Add the squared distances between clients over the pieces to `distances` (n, n), above the diagonal.

    Differences and a block's sums are taken in the type of `like` (1,), sums over blocks in float64. Every pair goes
    through the same operations, wherever it stands, so that equal updates have equal distances to any other.
    """
    n, size = addresses.shape[1], like.itemsize
    padded = (n + 3) // 4 * 4
    at, sums = np.empty(padded, np.int64), np.empty((4, 4))
    tiles = padded // 4 * (padded // 4 + 1) // 2
    ahead = (n * ((block * size + LINE - 1) // LINE) + tiles - 1) // tiles
    for array, start, stop in pieces:
        for begin in range(start, stop, block):
            width, offset = min(block, stop - begin), begin * size
            for k in range(padded):
                at[k] = addresses[array, min(k, n - 1)] + offset
            row, line, end = 0, 0, min(block, max(0, stop - begin - block)) * size
            for i in range(0, n, 4):
                for j in range(i, n, 4):
                    for _ in range(ahead):
                        if line >= end:
                            row, line = row + 1, 0
                        if row < n and end > 0:
                            _prefetch(at[row] + block * size + line)
                            line += LINE
                    _squares(at, i, j, width, like, sums)
                    for a in range(i, min(i + 4, n)):
                        for b in range(max(j, a + 1), min(j + 4, n)):
                            square = sums[a - i, b - j]
                            if not TINY < square < np.inf:
                                square = _wide_square(at[a], at[b], width, like)
                            distances[a, b] += square


@summing
def _add_scaled(address: int, width: int, like: Any, centre: Any, weight: float, total: Any) -> None:
    x = carray(_pointer(address, like), (width,))
    for c in range(width):
        total[c] += weight * (np.float64(x[c]) - centre[c])


@summing
def _add_four_scaled(at: Any, width: int, like: Any, centre: Any, weights: Any, total: Any) -> None:
    x0, x1 = carray(_pointer(at[0], like), (width,)), carray(_pointer(at[1], like), (width,))
    x2, x3 = carray(_pointer(at[2], like), (width,)), carray(_pointer(at[3], like), (width,))
    w0, w1, w2, w3 = weights[0], weights[1], weights[2], weights[3]
    for c in range(width):
        middle = centre[c]
        total[c] += (w0 * (np.float64(x0[c]) - middle) + w1 * (np.float64(x1[c]) - middle)) + (
            w2 * (np.float64(x2[c]) - middle) + w3 * (np.float64(x3[c]) - middle)
        )


@compiled
def weighted_sum(addresses: Any, pieces: Any, weights: Any, block: int, like: Any, results: Any) -> None:
    """Write c + sum_k w_k (x_k - c), in float64 until stored; c is the last client, w_k (n - 1,) are the others'."""
    n, size = addresses.shape[1] - 1, like.itemsize
    centre, total, at = np.empty(block), np.empty(block), np.empty(n, np.int64)
    for array, start, stop in pieces:
        for begin in range(start, stop, block):
            width, offset = min(block, stop - begin), begin * size
            for k in range(n):
                at[k] = addresses[array, k] + offset
            middle = carray(_pointer(addresses[array, n] + offset, like), (width,))
            for c in range(width):
                centre[c], total[c] = middle[c], 0.0
            for k in range(0, n - 3, 4):
                _add_four_scaled(at[k:], width, like, centre, weights[k:], total)
            for k in range(n // 4 * 4, n):
                _add_scaled(at[k], width, like, centre, weights[k], total)
            result = carray(_pointer(results[array] + offset, like), (width,))
            for c in range(width):
                result[c] = centre[c] + total[c]


@compiled
def _load(addresses: Any, array: int, begin: int, width: int, more: bool, like: Any, rows: Any) -> None:
    """Copy a block of columns into `rows`, the first `width` of them; ask for the next block if there is one."""
    for k in range(addresses.shape[1]):
        address, row = addresses[array, k] + begin * like.itemsize, rows[k]
        values = carray(_pointer(address, like), (width,))
        for c in range(width):
            row[c] = values[c]
        if more:
            for line in range(LANES * like.itemsize, 2 * LANES * like.itemsize, LINE):
                _prefetch(address + line)


@summing
def _mix(source: Any, starts: Any, members: Any, weights: Any, rows: Any) -> None:
    """Set each row to a weighted sum of those of `source` whose weights are not zero."""
    for i in range(len(starts) - 1):
        row, position = rows[i], starts[i]
        row[:] = 0.0
        while position + 4 <= starts[i + 1]:
            x0, x1 = source[members[position]], source[members[position + 1]]
            x2, x3 = source[members[position + 2]], source[members[position + 3]]
            w0, w1, w2, w3 = weights[position], weights[position + 1], weights[position + 2], weights[position + 3]
            for c in range(LANES):
                row[c] += (w0 * x0[c] + w1 * x1[c]) + (w2 * x2[c] + w3 * x3[c])
            position += 4
        for rest in range(position, starts[i + 1]):
            x0, w0 = source[members[rest]], weights[rest]
            for c in range(LANES):
                row[c] += w0 * x0[c]


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
    `weights` times the differences of `members` to it, from `starts[i]` to `starts[i + 1]`; without, -1.
    """
    first, last, keep = ranks
    total, below, middle = np.zeros(LANES), np.empty(LANES), np.zeros(LANES)
    for array, start, stop in pieces:
        for begin in range(start, stop, LANES):
            width, more = min(LANES, stop - begin), begin + 2 * LANES <= stop
            if centre < 0:
                _load(addresses, array, begin, width, more, like, rows)
            else:
                _load(addresses, array, begin, width, more, like, source)
                for c in range(LANES):
                    middle[c] = source[centre, c]
                for k in range(len(source)):
                    for c in range(LANES):
                        source[k, c] -= middle[c]
                _mix(source, starts, members, weights, rows)
            for q in range(len(exchanges)):
                _exchange(rows, exchanges[q, 0], exchanges[q, 1])
            if keep > 0:
                _mean_around_median(rows, keep, below, total)
            else:
                _mean_of_ranks(rows, first, last, total)
            result = carray(_pointer(results[array] + begin * like.itemsize, like), (width,))
            for c in range(width):
                result[c] = middle[c] + total[c]
