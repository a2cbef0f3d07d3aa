"""The bytes of a `.npy` file, as which Flower stores an array: written and read without a copy, and never unpickled."""

import math
from functools import lru_cache
from io import BytesIO
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from astrofed.shared.errors import AstrofedError

NPY = "numpy.ndarray"  # Flower's name for arrays stored as `.npy`
Bytes = bytes | memoryview


class MalformedArray(AstrofedError):
    """An array on the wire whose bytes are not what they say."""


def read(data: Bytes, name: str) -> NDArray[Any]:
    """Return a read-only view into the bytes of one array; `name` is for the error.

    Raises:
        MalformedArray: the bytes are not a `.npy` file of the size that its header says, or hold objects.
    """
    try:
        layout = _parse(bytes(data[: _header_length(data)]))
    except Exception as error:  # numpy's parser raises whatever a crafted header makes Python raise
        raise MalformedArray(f"array {name!r} does not begin with a .npy header of numbers: {error}") from error
    if len(data) - layout.start != layout.size:
        raise MalformedArray(
            f"array {name!r} has {len(data) - layout.start} bytes; {layout.shape} of {layout.dtype} are {layout.size}"
        )
    flat = np.frombuffer(data, layout.dtype, layout.items, layout.start)
    try:
        return flat.reshape(layout.shape, order=layout.order)
    except (ValueError, OverflowError) as error:
        raise MalformedArray(f"array {name!r} can't have the shape {layout.shape}: {error}") from error


@lru_cache(maxsize=4096)
def header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return what stands before an array's values, which follow in C order."""
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _header_length(data: Bytes) -> int:
    if data[:6] != b"\x93NUMPY" or len(data) < 12:
        raise ValueError("the magic bytes are missing")
    if data[6] == 1:
        return 10 + int.from_bytes(data[8:10], "little")
    return min(12 + int.from_bytes(data[8:12], "little"), 12 + 65536)


class _Layout(NamedTuple):
    """What a `.npy` header says, and where the data begin."""

    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype[Any]
    start: int
    items: int
    size: int  # bytes


@lru_cache(maxsize=4096)
def _parse(head: bytes) -> _Layout:
    buffer = BytesIO(head)
    version = np.lib.format.read_magic(buffer)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} is not one that arrays of numbers are written in")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(buffer)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if dtype.kind not in "biufc" or len(shape) > 32 or not all(0 <= side < 2**48 for side in shape):
        raise ValueError("not of numbers, or of impossible shape")
    count = math.prod(shape)
    return _Layout(shape, "F" if fortran else "C", dtype, buffer.tell(), count, count * dtype.itemsize)
