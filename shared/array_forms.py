"""Flower's arrays in the forms in which they lie here: bytes at hand, values in memory, or a span of a file.

Large arrays are not copied about: those of a model are its own memory, those of a message are a file on the disk, which
is mapped when it is looked at and let go behind whoever reads it. To Flower each is an array like any other.
"""

import mmap
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

from astrofed.shared import npy
from astrofed.shared.npy import NPY, Bytes

LARGE = 1 << 20
"""Bytes from which an array's values stay where they are."""
SPAN, PART = 8 << 20, 1 << 19
"""Bytes of an array that are read before mapped memory is let go, and that are worked on at a time."""


class Stored(Array):
    """An array whose bytes are at hand; its header is parsed once for all of a kind."""

    __qualname__ = Array.__qualname__  # by which Flower finds the class again on the other side of a wire

    def numpy(self) -> NDArray[Any]:
        """Return a copy, as Flower does (errors as `npy.read`)."""
        return view(self, "array").copy()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        mine, its = ((a.dtype, a.shape, a.stype, a.data) for a in (self, other))
        return mine == its

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[Array], tuple[str, tuple[int, ...], str, bytes]]:
        return Array, (self.dtype, self.shape, self.stype, bytes(self.data))


class InMemory(Stored):
    """An array whose values are somebody's memory, which must not change any more."""

    __qualname__ = Array.__qualname__

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """A copy, for who wants it in one piece."""
        return b"".join(pieces(self))


class InFile(Stored):
    """An array whose bytes are a span of a file."""

    __qualname__ = Array.__qualname__

    @property
    def data(self) -> memoryview:  # type: ignore[override]
        """The span, mapped for as long as somebody looks at it."""
        inside = self.__dict__
        start, length = inside["start"], inside["length"]
        within = start % mmap.ALLOCATIONGRANULARITY
        file: OpenFile = inside["file"]
        if not length:
            return memoryview(b"")
        mapped = mmap.mmap(file.descriptor, within + length, mmap.MAP_SHARED, mmap.PROT_READ, offset=start - within)
        return memoryview(mapped)[within:]


class OpenFile:
    """A file that is open for reading for as long as somebody has this; deleting its name does not harm."""

    descriptor = -1

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.descriptor).st_size

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def stored(dtype: np.dtype[Any], shape: tuple[int, ...], data: bytes) -> Array:
    """Return Flower's array of the bytes of a `.npy` file; made and read several times faster than Flower does it."""
    array = Stored.__new__(Stored)
    inside = array.__dict__
    inside["dtype"], inside["shape"], inside["stype"], inside["data"] = _name(dtype), shape, NPY, data
    return array


def in_memory(values: NDArray[Any]) -> Array:
    """Return Flower's array of values (any shape, C-contiguous) that stay where they are."""
    values = values.view()
    values.flags.writeable = False
    return _made(InMemory, _name(values.dtype), values.shape, NPY, values=values)


def in_file(dtype: str, shape: tuple[int, ...], stype: str, file: OpenFile, start: int, length: int) -> Array:
    """Return Flower's array of a span of a file, in bytes."""
    return _made(InFile, dtype, shape, stype, file=file, start=start, length=length)


def renamed(array: Array, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Return an array of the same bytes that claims this type and shape, as those bytes do."""
    inside = array.__dict__
    if "data" in inside:
        return stored(dtype, shape, inside["data"])
    where = {key: inside[key] for key in ("values", "file", "start", "length") if key in inside}
    return _made(type(array), _name(dtype), shape, NPY, **where)


def at_hand(array: Array) -> bytes | None:
    """Return an array's bytes where they are at hand in one piece, as those of all small arrays."""
    data = array.__dict__.get("data")
    return data if type(data) is bytes else None


def pieces(array: Array) -> tuple[Bytes, ...]:
    """Return what an array's bytes are made of, one after the other, without a copy."""
    if isinstance(array, InMemory):
        values: NDArray[Any] = array.__dict__["values"]
        return npy.header(values.dtype, values.shape), values.reshape(-1).view(np.uint8).data
    return (array.data,)


def size(array: Array) -> int:
    """Return how many bytes an array has on the wire."""
    inside = array.__dict__
    if "data" in inside:
        return len(inside["data"])
    if "length" in inside:
        length: int = inside["length"]
        return length
    return sum(map(len, pieces(array)))


def begins_with(array: Array, head: bytes) -> bool:
    """Whether an array's bytes begin so."""
    data = array.__dict__.get("data")
    return data.startswith(head) if type(data) is bytes else bytes(pieces(array)[0][: len(head)]) == head


def view(array: Array, name: str) -> NDArray[Any]:
    """Return a read-only view into one array's bytes (errors as `npy.read`)."""
    if isinstance(array, InMemory):
        values: NDArray[Any] = array.__dict__["values"]
        return values
    if array.stype != NPY:
        raise npy.MalformedArray(f"array {name!r} is stored as {array.stype!r}; only {NPY!r} is read")
    return npy.read(array.data, name)


def parts(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield an array's values in flat pieces of bounded size; mapped memory is let go behind them."""
    flat = values.reshape(-1) if values.flags.c_contiguous else values.ravel()
    step = max(1, PART // max(1, flat.itemsize))
    if flat.size <= step:
        yield flat
        return
    for start in range(0, flat.size, step):
        yield flat[start : start + step]
        if start % (SPAN // PART * step) == 0:
            let_go(flat)
    let_go(flat)


def let_go(values: NDArray[Any]) -> None:
    """Give memory back that only mirrors a file; reading on maps it anew. Values that lie elsewhere are left alone."""
    if (mapped := mapping(values)) is not None:
        mapped.madvise(mmap.MADV_DONTNEED)


def mapping(values: NDArray[Any]) -> mmap.mmap | None:
    """Return the file's mirror that values lie in; None if they lie elsewhere."""
    owner: Any = values
    while isinstance(owner, np.ndarray):
        owner = owner.base
    mapped = owner.obj if isinstance(owner, memoryview) else owner
    return mapped if isinstance(mapped, mmap.mmap) else None


def _made(kind: type[Array], dtype: str, shape: tuple[int, ...], stype: str, **rest: Any) -> Array:
    array = kind.__new__(kind)
    array.__dict__.update(dtype=dtype, shape=shape, stype=stype, **rest)
    return array


@lru_cache(maxsize=64)
def _name(dtype: np.dtype[Any]) -> str:
    return str(dtype)
