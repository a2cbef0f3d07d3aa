"""Vector instructions for sorting: rows of a block in memory, or few rows in the machine's registers.

As in `vectors`, values are given as addresses and none is added in another order than written.
"""

from typing import Any

from llvmlite import ir

from astrofed.server.aggregation.base import MeanOfRanks
from astrofed.server.aggregation.order import network
from astrofed.server.aggregation.vectors import (
    LANES,
    LINE,
    LONG,
    REGISTER,
    array_data,
    code,
    fused,
    generated,
    literal,
    load_vector,
    numeric,
    prefetch_line,
    spread,
)

VECTOR = 8
GROUP = 32  # columns that are loaded together: four registers' pairs
FAR = 512  # bytes, where few rows are read at once


@generated
def exchange(typing: Any, rows: Any, i: Any, j: Any) -> Any:
    """Put the smaller of each pair of values into row i, the larger into row j, LANES columns at once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = signature.args[0]
        data, _ = array_data(context, builder, array, arguments[0])
        value = context.get_data_type(array.dtype)
        vector, size = ir.VectorType(value, VECTOR).as_pointer(), array.dtype.bitwidth // 8
        first, second = (builder.gep(data, [builder.mul(row, LONG(LANES))]) for row in arguments[1:])
        for group in range(0, LANES, GROUP):
            pairs = []
            for lane in range(group, group + GROUP, VECTOR):
                low, high = (builder.bitcast(builder.gep(p, [LONG(lane)]), vector) for p in (first, second))
                pairs.append((low, high, builder.load(low, align=size), builder.load(high, align=size)))
            for low, high, x, y in pairs:
                less = builder.fcmp_ordered("<", x, y)
                builder.store(builder.select(less, x, y), low, align=size)
                builder.store(builder.select(less, y, x), high, align=size)
        return context.get_dummy_value()

    return numeric.void(rows, numeric.int64, numeric.int64), generate


@generated
def load_block(typing: Any, address: Any, like: Any, row: Any) -> Any:
    """Copy LANES values that lie at an address into the array `row`; ask for the LANES after them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, _ = array_data(context, builder, signature.args[2], arguments[2])
        value, size = context.get_data_type(like.dtype), like.dtype.bitwidth // 8
        kept, width = context.get_data_type(row.dtype), row.dtype.bitwidth // 8
        lanes = REGISTER // width
        narrow, wide = ir.VectorType(value, lanes), ir.VectorType(kept, lanes)
        for lane in range(0, LANES, lanes):
            at = builder.add(arguments[0], LONG(lane * size))
            loaded = load_vector(builder, at, narrow, size)
            loaded = builder.fpext(loaded, wide) if width > size else loaded
            builder.store(loaded, builder.bitcast(builder.gep(target, [LONG(lane)]), wide.as_pointer()), align=width)
            if lane * size % LINE == 0:
                prefetch_line(builder, builder.add(at, LONG(LANES * size)))
        return context.get_dummy_value()

    return numeric.void(numeric.int64, like, row), generate


@literal
def sort_few(
    typing: Any, at: Any, offset: Any, steps: Any, target: Any, like: Any, n: Any, first: Any, stop: Any, out: Any
) -> Any:
    """Write the mean of ranks `first` to before `stop` of each column of n rows, sorted in registers.

    `at` are the rows' addresses; the columns begin `offset` bytes after them, `steps` registers of them. n and the
    ranks are known when this is compiled, so that only the comparisons that they need are. `target` is the address of
    the results, of the type that the array `out` holds; their sums are taken in float64, about the lowest rank.
    """
    count, low, high = (number.literal_value for number in (n, first, stop))
    pairs = network(count, MeanOfRanks(low, high)).tolist()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        places, _ = array_data(context, builder, signature.args[0], arguments[0])
        value, size = context.get_data_type(like.dtype), like.dtype.bitwidth // 8
        given, width = context.get_data_type(out.dtype), out.dtype.bitwidth // 8
        lanes = REGISTER // size
        narrow, result = (ir.VectorType(kind, lanes) for kind in (value, given))
        rows = [builder.add(builder.load(builder.gep(places, [LONG(k)])), arguments[1]) for k in range(count)]
        with code.for_range(builder, arguments[2]) as loop:
            column = builder.mul(loop.index, LONG(REGISTER))
            values = []
            for row in rows:
                address = builder.add(row, column)
                values.append(load_vector(builder, address, narrow, size))
                prefetch_line(builder, builder.add(address, LONG(FAR)))
            mean = _sorted_mean(builder, values, pairs, low, high)
            mean = builder.fptrunc(mean, result) if width < 8 else mean
            place = builder.add(arguments[3], builder.mul(loop.index, LONG(lanes * width)))
            builder.store(mean, builder.inttoptr(place, result.as_pointer()), align=width)
        return context.get_dummy_value()

    number = numeric.int64
    return numeric.void(at, number, number, number, like, n, first, stop, out), generate


@literal
def sort_mixed(
    typing: Any,
    at: Any,
    offset: Any,
    steps: Any,
    target: Any,
    starts: Any,
    members: Any,
    weights: Any,
    centre: Any,
    like: Any,
    held: Any,
    n: Any,
    first: Any,
    stop: Any,
) -> Any:
    """Write the mean of ranks `first` to before `stop` of each column of n mixes of `held` rows, sorted in registers.

    For the addresses see `sort_few`; results are of the type that `like` holds. Mix i is the sum of `weights` times the
    differences of `members` to the row `centre`, from `starts[i]` to `starts[i + 1]`, and from `starts[n]` to
    `starts[n + 1]`, which is common to all. It is taken in the type of `weights`, differences in that of `like`.
    """
    taken, count, low, high = (number.literal_value for number in (held, n, first, stop))
    pairs = network(count, MeanOfRanks(low, high)).tolist()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        places, _ = array_data(context, builder, kinds[0], arguments[0])
        (begins, _), (ids, _), (shares, _) = (array_data(context, builder, kinds[k], arguments[k]) for k in (4, 5, 6))
        value, size = context.get_data_type(like.dtype), like.dtype.bitwidth // 8
        summed, lanes = context.get_data_type(weights.dtype), REGISTER // size
        narrow, exact, wide = (ir.VectorType(kind, lanes) for kind in (value, summed, ir.DoubleType()))
        rows = [builder.add(builder.load(builder.gep(places, [LONG(k)])), arguments[1]) for k in range(taken)]
        middle_row = builder.add(builder.load(builder.gep(places, [arguments[7]])), arguments[1])
        ends = [builder.load(builder.gep(begins, [LONG(k)])) for k in range(count + 2)]
        differences = code.alloca_once(builder, narrow, size=taken)

        def mixed(first: Any, stop: Any, start: Any) -> Any:
            total = code.alloca_once(builder, exact)
            builder.store(start, total)
            with code.for_range(builder, stop, start=first) as loop:
                row = builder.load(builder.gep(differences, [builder.load(builder.gep(ids, [loop.index]))]))
                row = row if exact == narrow else builder.fpext(row, exact)
                share = spread(builder, builder.load(builder.gep(shares, [loop.index])), lanes)
                builder.store(fused(builder, share, row, builder.load(total)), total)
            return builder.load(total)

        with code.for_range(builder, arguments[2]) as step:
            column = builder.mul(step.index, LONG(REGISTER))
            middle = load_vector(builder, builder.add(middle_row, column), narrow, size)
            for k, row in enumerate(rows):
                address = builder.add(row, column)
                difference = builder.fsub(load_vector(builder, address, narrow, size), middle)
                builder.store(difference, builder.gep(differences, [LONG(k)]))
                prefetch_line(builder, builder.add(address, LONG(FAR)))
            common = mixed(ends[count], ends[count + 1], ir.Constant(exact, [0.0] * lanes))
            values = [mixed(ends[i], ends[i + 1], common) for i in range(count)]
            values = values if exact == narrow else [builder.fptrunc(x, narrow) for x in values]
            mean = _sorted_mean(builder, values, pairs, low, high)
            middle = builder.fpext(middle, wide) if size < 8 else middle
            mean = builder.fadd(middle, mean)
            mean = builder.fptrunc(mean, narrow) if size < 8 else mean
            place = builder.inttoptr(builder.add(arguments[3], column), narrow.as_pointer())
            builder.store(mean, place, align=size)
        return context.get_dummy_value()

    number = numeric.int64
    given = (at, number, number, number, starts, members, weights, number, like, held, n, first, stop)
    return numeric.void(*given), generate


def _sorted_mean(builder: Any, values: list[Any], pairs: list[tuple[int, int]], low: int, high: int) -> Any:
    """Return the mean of ranks `low` to before `high` of vectors, in float64, after exchanging the pairs."""
    values, kind = list(values), values[0].type
    for i, j in pairs:
        less = builder.fcmp_ordered("<", values[i], values[j])
        values[i], values[j] = (
            builder.select(less, values[i], values[j]),
            builder.select(less, values[j], values[i]),
        )
    kept = values[low:high]
    if isinstance(kind.element, ir.FloatType):  # float64 holds sums of a few float32 values to the last digit
        wide = ir.VectorType(ir.DoubleType(), kind.count)
        return _over(builder, [builder.fpext(x, wide) for x in kept])
    if len(kept) > 1:
        return builder.fadd(kept[0], _over(builder, [builder.fsub(x, kept[0]) for x in kept]))
    return kept[0]


def _over(builder: Any, rows: list[Any]) -> Any:
    """Return the mean of vectors of float64, added up in two sums side by side."""
    if len(rows) == 1:
        return rows[0]
    sums = rows[:2]
    for k, row in enumerate(rows[2:]):
        sums[k % 2] = builder.fadd(sums[k % 2], row)
    total = builder.fadd(*sums)
    return builder.fdiv(total, ir.Constant(total.type, [float(len(rows))] * total.type.count))
