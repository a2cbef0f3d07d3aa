"""Arrays on the wire: Flower's records to and from torch and numpy, without copies that are not needed.

Flower stores an array as the bytes of a `.npy` file. Reading gives a read-only view into those bytes; writing copies
once. Nothing is ever unpickled.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor, nn

from astrofed.shared import records
from astrofed.shared.errors import AstrofedError
from astrofed.shared.slots import Slot, find_slots

_FEW = 4096  # numbers that are looked at one by one
NPY = "numpy.ndarray"  # Flower's name for arrays stored as `.npy`


class MalformedArray(AstrofedError):
    """An array on the wire whose bytes are not what they say."""


class WrongArrays(AstrofedError):
    """The arrays that came are not those of the model: names, shapes or types differ."""


def from_numpy(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Return Flower's record of named arrays of any shape; C-contiguous bytes, one copy."""
    made: dict[str, Array] = {}
    for name, array in arrays.items():
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        data = b"".join((_header(array.dtype, array.shape), flat.data))
        made[name] = stored(array.dtype, array.shape, data)
    return records.arrays(made)


def stored(dtype: np.dtype[Any], shape: tuple[int, ...], data: bytes) -> Array:
    """Return Flower's array of the bytes of a `.npy` file; made and read several times faster than Flower does it."""
    array = _Stored.__new__(_Stored)
    inside = array.__dict__
    inside["dtype"], inside["shape"], inside["stype"], inside["data"] = _name(dtype), shape, NPY, data
    return array


def to_numpy(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Return read-only views into a record's bytes, by name, in the record's order.

    Raises:
        MalformedArray: an array's bytes are not a `.npy` file of the size that its header says, or hold objects.
    """
    return {name: view(array, name) for name, array in record.items()}


class Expected(NamedTuple):
    """What the bytes of an array are to be: those that numpy writes for one type and shape, in C order."""

    header: bytes
    length: int  # of the whole, in bytes
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def like(cls, array: NDArray[Any]) -> "Expected":
        """Return what an array of that type and shape is stored as."""
        return cls._of(array.dtype, array.shape)

    @classmethod
    def _of(cls, dtype: np.dtype[Any], shape: tuple[int, ...]) -> "Expected":
        header = _header(dtype, shape)
        return cls(header, len(header) + math.prod(shape) * dtype.itemsize, dtype, shape)

    def fits(self, array: Array) -> bool:
        """Whether an array's bytes are of this form; where not, they may still hold the same in another."""
        data = array.data
        return array.stype == NPY and len(data) == self.length and data.startswith(self.header)

    def flat(self, array: Array) -> NDArray[Any]:
        """Return a read-only view (values,) into the bytes of an array that fits."""
        return np.frombuffer(array.data, self.dtype, -1, len(self.header))

    def stacked(self, arrays: Sequence[Array]) -> NDArray[Any]:
        """Return a copy (arrays, values) of arrays that fit; for small ones, of which looking at each takes longer."""
        rows = np.frombuffer(b"".join([array.data for array in arrays]), np.uint8).reshape(len(arrays), self.length)
        return rows[:, len(self.header) :].view(self.dtype)


def view(array: Array, name: str) -> NDArray[Any]:
    """Return a read-only view into one array's bytes (errors as `to_numpy`)."""
    data = array.data
    if array.stype != NPY:
        raise MalformedArray(f"array {name!r} is stored as {array.stype!r}; only {NPY!r} is read")
    try:
        layout = _parse(data[: _header_length(data)])
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


def from_state_dict(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Return Flower's record of a model's state.

    Raises:
        WrongArrays: the state holds what numpy has no arrays for.
    """
    try:
        return from_numpy({name: tensor.cpu().numpy() for name, tensor in state.items()})
    except (TypeError, RuntimeError) as error:  # bfloat16 and its like
        raise WrongArrays(f"the model's state holds what numpy has no arrays for: {error}") from error


def only_finite(flat: NDArray[Any]) -> bool:
    """Say whether all numbers (values,) are finite.

    Many are squared and added first, in one fast pass without another array: only where a number isn't finite, or
    squares overflow, neither is the sum, and each is looked at.
    """
    if flat.dtype.kind not in "fc":
        return True
    if flat.size > _FEW:
        with np.errstate(over="ignore", invalid="ignore"):
            if math.isfinite(abs(np.dot(flat, flat))):
                return True
    return int(np.count_nonzero(np.isfinite(flat))) == flat.size


def from_model(model: nn.Module) -> ArrayRecord:
    """Return Flower's record of a model's parameters and buffers (errors as `from_state_dict`)."""
    slots = find_slots(model)
    if slots is None:
        return from_state_dict(model.state_dict())
    return records.arrays(
        {
            slot.name: stored(slot.dtype, slot.shape, b"".join((_header(slot.dtype, slot.shape), slot.data)))
            for slot in slots
        }
    )


def load_into(model: nn.Module, record: ArrayRecord) -> None:
    """Copy a record's arrays into a model's parameters and buffers; floats of another width are converted.

    Raises:
        WrongArrays: names, shapes or types are not the model's.
        MalformedArray: see `to_numpy`.
    """
    held, slots = records.items(record), find_slots(model)
    if slots is not None and len(slots) == len(held) and all([_fits(slot, held.get(slot.name)) for slot in slots]):
        for slot in slots:
            data = held[slot.name].data
            slot.data[:] = memoryview(data)[len(data) - slot.data.nbytes :]
        return
    state = model.state_dict()
    if state.keys() != record.keys():
        absent, extra = sorted(state.keys() - record.keys()), sorted(record.keys() - state.keys())
        raise WrongArrays(
            f"the arrays are not those of the model: absent {absent or 'none'}, unknown {extra or 'none'}"
        )
    for name, tensor in state.items():
        array = view(record[name], name)
        if array.shape != tensor.shape:
            raise WrongArrays(f"array {name!r} has the shape {array.shape}; the model's is {tuple(tensor.shape)}")
        _copy(array, tensor, name)


def _fits(slot: Slot, array: Array | None) -> bool:
    """Whether an array's bytes are those of a slot behind the header that numpy writes for it."""
    if array is None or array.stype != NPY:
        return False
    header, data = _header(slot.dtype, slot.shape), array.data
    return len(data) == len(header) + slot.data.nbytes and data.startswith(header)


def _copy(array: NDArray[Any], tensor: Tensor, name: str) -> None:
    try:
        if tensor.is_cpu:
            np.copyto(tensor.numpy(), array, casting="same_kind")  # torch's own way warns of read-only memory
        else:
            tensor.copy_(torch.from_numpy(array.copy()))
    except TypeError as error:
        raise WrongArrays(f"array {name!r} is of type {array.dtype}; the model's is {tensor.dtype}") from error


@lru_cache(maxsize=4096)
def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@lru_cache(maxsize=64)
def _name(dtype: np.dtype[Any]) -> str:
    return str(dtype)


def _header_length(data: bytes) -> int:
    if data[:6] != b"\x93NUMPY" or len(data) < 12:
        raise ValueError("the magic bytes are missing")
    if data[6] == 1:
        return 10 + int.from_bytes(data[8:10], "little")
    return min(12 + int.from_bytes(data[8:12], "little"), 12 + 65536)


class _Stored(Array):
    """Flower's array, with its header parsed once for all arrays of a kind: stock strategies spend most on that."""

    __qualname__ = Array.__qualname__  # by which Flower finds the class again on the other side of a wire

    def numpy(self) -> NDArray[Any]:
        """Return a copy, as Flower does (errors as `to_numpy`)."""
        return view(self, "array").copy()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        mine, its = ((a.dtype, a.shape, a.stype, a.data) for a in (self, other))
        return mine == its

    __hash__ = None  # type: ignore[assignment]


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
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(buffer)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if dtype.kind not in "biufc" or len(shape) > 32 or not all(0 <= side < 2**48 for side in shape):
        raise ValueError("not of numbers, or of impossible shape")
    count = math.prod(shape)
    return _Layout(shape, "F" if fortran else "C", dtype, buffer.tell(), count, count * dtype.itemsize)
