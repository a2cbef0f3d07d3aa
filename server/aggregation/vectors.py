"""Vector instructions that the compiler does not find by itself, for the kernels: written in LLVM's own language.

All work on values where they lie, given as addresses, and none needs them aligned to more than one value. Registers are
as wide as the machine's. Nothing is added in another order than written, so that results don't depend on the place of a
client. Memory that is read soon is asked for in the midst of the arithmetic: asked for in bursts, it makes that wait.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import llvmlite.binding
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

REGISTER = 64 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 32  # bytes
LINE = 64  # bytes of a cache line, over which one is prefetched
LANES = 128  # columns of a block of order statistics: one comparison of two rows is sixteen vectors of eight
COLUMNS = REGISTER // 2  # of a step of `add_weighted`: four registers of float64
TILE = 4  # clients whose distances to four others are taken together: sixteen registers of sums
SOON = 2  # rows whose next block is asked for meanwhile
AHEAD = 1024  # bytes
LONG, SHORT, BYTES = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()

generated: Callable[[Callable[..., Any]], Callable[..., Any]] = intrinsic
literal: Callable[[Callable[..., Any]], Callable[..., Any]] = intrinsic(prefer_literal=True)
carray: Callable[..., Any] = cast(Any, numba).carray
code: Any = cgutils
numeric: Any = types


@generated
def pointer(typing: Any, address: Any, like: Any) -> Any:
    """Return an address as a pointer to values of the type that the array `like` holds."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return numeric.CPointer(like.dtype)(numeric.int64, like), generate


@generated
def prefetch(typing: Any, address: Any) -> Any:
    """Ask for a cache line that will be read soon."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        prefetch_line(builder, arguments[0])
        return context.get_dummy_value()

    return numeric.void(numeric.int64), generate


@literal
def squares_between(
    typing: Any, at: Any, i: Any, j: Any, begin: Any, width: Any, sums: Any, rows: Any, ahead: Any, like: Any, few: Any
) -> Any:
    """Put the squared distances of rows i … and j … into `sums` (TILE, TILE): TILE rows from i on, and `few` from j on.

    `at` are the rows' addresses; the columns begin `begin` bytes after them, and of `width` a whole number of registers
    is worked through. Of the SOON rows from `rows` on, what lies `ahead` bytes further on is prefetched. How many are
    `few` is known when this is compiled.
    """
    return _squares(few.literal_value, False, at, sums, like, few)


@literal
def squares_within(
    typing: Any, at: Any, i: Any, j: Any, begin: Any, width: Any, sums: Any, rows: Any, ahead: Any, like: Any, few: Any
) -> Any:
    """Do the same for the `few` rows from i = j on, each pair of them once."""
    return _squares(few.literal_value, True, at, sums, like, few)


def _squares(count: int, within: bool, at: Any, sums: Any, like: Any, few: Any) -> Any:
    """Return the type and the code of the two above."""
    own = count if within else TILE

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        places, _ = array_data(context, builder, signature.args[0], arguments[0])
        totals, _ = array_data(context, builder, signature.args[5], arguments[5])
        value, size = context.get_data_type(like.dtype), like.dtype.bitwidth // 8
        lanes = REGISTER // size
        vector = ir.VectorType(value, lanes)
        pairs = [(a, b) for a in range(own) for b in range(a + 1 if within else 0, count)]
        squares = {pair: _variable(builder, vector) for pair in pairs}
        mine, its, soon = (
            [builder.load(builder.gep(places, [builder.add(row, LONG(k))])) for k in range(number)]
            for row, number in ((arguments[1], own), (arguments[2], count), (arguments[6], SOON))
        )
        with _steps(builder, arguments[4], lanes) as column:
            offset = builder.add(arguments[3], builder.mul(column, LONG(size)))
            xs = [load_vector(builder, builder.add(address, offset), vector, size) for address in mine]
            ys = xs if within else [load_vector(builder, builder.add(row, offset), vector, size) for row in its]
            for address in soon:
                prefetch_line(builder, builder.add(address, builder.add(offset, arguments[7])))
            for (a, b), total in squares.items():
                difference = builder.fsub(xs[a], ys[b])
                builder.store(fused(builder, difference, difference, builder.load(total)), total)
        for (a, b), total in squares.items():
            wide = builder.fpext(_sum(builder, builder.load(total)), ir.DoubleType()) if size < 8 else None
            found = wide if wide is not None else _sum(builder, builder.load(total))
            builder.store(found, builder.gep(totals, [LONG(TILE * a + b)]))
        return context.get_dummy_value()

    number = numeric.int64
    return numeric.void(at, number, number, number, number, sums, number, number, like, few), generate


@generated
def add_weighted(
    typing: Any, at: Any, weights: Any, offset: Any, middle: Any, total: Any, result: Any, more: Any, like: Any
) -> Any:
    """Add sum_k w_k (x_k - c) to `total`, COLUMNS of them, in float64; write c plus it as the result.

    `more` is 1 if rows follow, plus 2 if rows went before: `total` is written or read only then.

    `at` are the rows' addresses, `middle` and `result` those of c and of the result; the columns begin `offset` bytes
    after them.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, count = array_data(context, builder, signature.args[0], arguments[0])
        shares, _ = array_data(context, builder, signature.args[1], arguments[1])
        offset, centre = arguments[2:4]
        totals, _ = array_data(context, builder, signature.args[4], arguments[4])
        value, size = context.get_data_type(like.dtype), like.dtype.bitwidth // 8
        lanes = REGISTER // 8
        narrow, wide = ir.VectorType(value, lanes), ir.VectorType(ir.DoubleType(), lanes)
        places = range(0, COLUMNS, lanes)

        def widened(address: Any, place: int) -> Any:
            loaded = load_vector(builder, builder.add(address, LONG(place * size)), narrow, size)
            return builder.fpext(loaded, wide) if size < 8 else loaded

        base = builder.add(centre, offset)
        middles = {place: widened(base, place) for place in places}
        at_total = {p: builder.bitcast(builder.gep(totals, [LONG(p)]), wide.as_pointer()) for p in places}
        sums = {place: _variable(builder, wide) for place in places}
        with builder.if_then(_has(builder, arguments[6], 2)):
            for place, total in sums.items():
                builder.store(builder.load(at_total[place], align=8), total)
        with code.for_range(builder, count) as row:
            address = builder.add(builder.load(builder.gep(rows, [row.index])), offset)
            weight = spread(builder, builder.load(builder.gep(shares, [row.index])), lanes)
            for line in range(0, COLUMNS * size, LINE):
                prefetch_line(builder, builder.add(address, LONG(line + AHEAD)), near=3)
            for place, total in sums.items():
                difference = builder.fsub(widened(address, place), middles[place])
                builder.store(fused(builder, weight, difference, builder.load(total)), total)
        with builder.if_else(_has(builder, arguments[6], 1)) as (then, otherwise):
            with then:
                for place, total in sums.items():
                    builder.store(builder.load(total), at_total[place], align=8)
            with otherwise:
                target = builder.add(arguments[5], offset)
                for place, total in sums.items():
                    new = builder.fadd(middles[place], builder.load(total))
                    new = builder.fptrunc(new, narrow) if size < 8 else new
                    spot = builder.inttoptr(builder.add(target, LONG(place * size)), narrow.as_pointer())
                    builder.store(new, spot, align=size)
        return context.get_dummy_value()

    number = numeric.int64
    return numeric.void(at, weights, number, number, total, number, number, like), generate


@generated
def mix(
    typing: Any, source: Any, members: Any, weights: Any, first: Any, stop: Any, common: Any, column: Any, target: Any
) -> Any:
    """Set COLUMNS of `target` to `common` plus the weighted sum of rows of `source`, all (…, LANES).

    The rows are `members`, and `weights` theirs, from `first` to `stop`; the columns begin at `column`. Sums are taken
    in the type of the weights, which is that of the rows or wider.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        (data, _), (rows, _), (shares, _) = (array_data(context, builder, kinds[k], arguments[k]) for k in range(3))
        (start, _), (end, _) = (array_data(context, builder, kinds[k], arguments[k]) for k in (5, 7))
        lanes, column = REGISTER // (weights.dtype.bitwidth // 8), arguments[6]
        wide = ir.VectorType(context.get_data_type(weights.dtype), lanes)

        def at(row: Any, place: int, kind: Any) -> tuple[Any, Any]:
            vector = ir.VectorType(context.get_data_type(kind.dtype), lanes)
            return builder.bitcast(builder.gep(row, [builder.add(column, LONG(place))]), vector.as_pointer()), vector

        def load(row: Any, place: int, kind: Any) -> Any:
            spot, vector = at(row, place, kind)
            loaded = builder.load(spot, align=kind.dtype.bitwidth // 8)
            return loaded if vector == wide else builder.fpext(loaded, wide)

        sums = {p: _variable(builder, wide, load(start, p, kinds[5])) for p in range(0, COLUMNS, lanes)}
        with code.for_range(builder, arguments[4], start=arguments[3]) as loop:
            weight = spread(builder, builder.load(builder.gep(shares, [loop.index])), lanes)
            row = builder.gep(data, [builder.mul(builder.load(builder.gep(rows, [loop.index])), LONG(LANES))])
            for place, total in sums.items():
                builder.store(fused(builder, weight, load(row, place, kinds[0]), builder.load(total)), total)
        for place, total in sums.items():
            spot, vector = at(end, place, kinds[7])
            new = builder.load(total)
            new = new if vector == wide else builder.fptrunc(new, vector)
            builder.store(new, spot, align=kinds[7].dtype.bitwidth // 8)
        return context.get_dummy_value()

    number = numeric.int64
    return numeric.void(source, members, weights, number, number, common, number, target), generate


def array_data(context: Any, builder: Any, kind: Any, value: Any) -> tuple[Any, Any]:
    """Return a pointer to an array's data and its length."""
    array = context.make_array(kind)(context, builder, value)
    return array.data, builder.extract_value(array.shape, 0)


def load_vector(builder: Any, address: Any, vector: Any, align: int) -> Any:
    return builder.load(builder.inttoptr(address, vector.as_pointer()), align=align)


def _variable(builder: Any, kind: Any, value: Any = None) -> Any:
    """Return a place for a value that changes in a loop; the compiler makes it a register."""
    place = code.alloca_once(builder, kind)
    builder.store(ir.Constant(kind, [0.0] * kind.count) if value is None else value, place)
    return place


@contextmanager
def _steps(builder: Any, stop: Any, step: int) -> Iterator[Any]:
    """Loop over 0, step, … as long as a whole step is left."""
    with code.for_range(builder, builder.sdiv(stop, LONG(step))) as loop:
        yield builder.mul(loop.index, LONG(step))


def _has(builder: Any, number: Any, bit: int) -> Any:
    """Return whether a number has a bit."""
    return builder.icmp_signed("!=", builder.and_(number, LONG(bit)), LONG(0))


def fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a b + c, rounded once."""
    kind = a.type
    name = f"llvm.fma.v{kind.count}{'f32' if isinstance(kind.element, ir.FloatType) else 'f64'}"
    return builder.call(code.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name), [a, b, c])


def spread(builder: Any, value: Any, lanes: int) -> Any:
    """Return a vector with the value in each lane."""
    nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = builder.insert_element(nothing, value, SHORT(0))
    return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(SHORT, lanes), [0] * lanes))


def _sum(builder: Any, vector: Any) -> Any:
    """Return the sum of a vector's lanes, halves added to each other again and again."""
    while vector.type.count > 1:
        half = vector.type.count // 2
        low, high = (
            builder.shuffle_vector(
                vector, vector, ir.Constant(ir.VectorType(SHORT, half), list(range(start, start + half)))
            )
            for start in (0, half)
        )
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, SHORT(0))


def prefetch_line(builder: Any, address: Any, near: int = 2) -> None:
    """Ask for a cache line, `near` the core: 3 into its first cache, 2 into its second."""
    kind = ir.FunctionType(ir.VoidType(), [BYTES, SHORT, SHORT, SHORT])
    function = code.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.inttoptr(address, BYTES), SHORT(0), SHORT(near), SHORT(1)])
