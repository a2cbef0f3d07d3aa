"""Arrays on the wire: Flower's records to and from torch and numpy, without copies that are not needed.

Flower stores an array as the bytes of a `.npy` file. Reading gives a read-only view into those bytes; writing copies
once. Nothing is ever unpickled.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor, nn

from astrofed.shared import records
from astrofed.shared.array_forms import LARGE, at_hand, begins_with, in_memory, pieces, size, stored, view
from astrofed.shared.errors import AstrofedError
from astrofed.shared.npy import NPY, header
from astrofed.shared.slots import Slot, find_slots

_FEW = 4096  # numbers that are looked at one by one


class WrongArrays(AstrofedError):
    """The arrays that came are not those of the model: names, shapes or types differ."""


def from_numpy(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Return Flower's record of named arrays of any shape: copies of small ones, and large ones as they are.

    Large ones must not be changed afterwards.
    """
    made: dict[str, Array] = {}
    for name, array in arrays.items():
        whole = np.asarray(array, order="C")
        if whole.nbytes >= LARGE:
            made[name] = in_memory(whole)
            continue
        data = b"".join((header(whole.dtype, whole.shape), whole.reshape(-1).view(np.uint8).data))
        made[name] = stored(whole.dtype, whole.shape, data)
    return records.arrays(made)


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
        head = header(dtype, shape)
        return cls(head, len(head) + math.prod(shape) * dtype.itemsize, dtype, shape)

    def fits(self, array: Array) -> bool:
        """Whether an array's bytes are of this form; where not, they may still hold the same in another."""
        data = at_hand(array)
        if data is None:
            return array.stype == NPY and size(array) == self.length and begins_with(array, self.header)
        return array.stype == NPY and len(data) == self.length and data.startswith(self.header)

    def flat(self, array: Array) -> NDArray[Any]:
        """Return a read-only view (values,) into the bytes of an array that fits."""
        data = at_hand(array)
        if data is not None:
            return np.frombuffer(data, self.dtype, -1, len(self.header))
        whole = pieces(array)
        return np.frombuffer(whole[-1], self.dtype, -1, len(self.header) if len(whole) == 1 else 0)

    def stacked(self, arrays: Sequence[Array]) -> NDArray[Any]:
        """Return a copy (arrays, values) of arrays that fit; for small ones, of which looking at each takes longer."""
        rows = np.frombuffer(b"".join([array.data for array in arrays]), np.uint8).reshape(len(arrays), self.length)
        return rows[:, len(self.header) :].view(self.dtype)


def from_state_dict(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Return Flower's record of a model's state.

    Raises:
        WrongArrays: the state holds what numpy has no arrays for.
    """
    try:
        return from_numpy({name: tensor.cpu().numpy().copy() for name, tensor in state.items()})
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
            slot.name: stored(slot.dtype, slot.shape, b"".join((header(slot.dtype, slot.shape), slot.data)))
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
            if slot.data.nbytes:
                slot.data[:] = memoryview(pieces(held[slot.name])[-1])[-slot.data.nbytes :]
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
    head = header(slot.dtype, slot.shape)
    return size(array) == len(head) + slot.data.nbytes and begins_with(array, head)


def _copy(array: NDArray[Any], tensor: Tensor, name: str) -> None:
    try:
        if tensor.is_cpu:
            np.copyto(tensor.numpy(), array, casting="same_kind")  # torch's own way warns of read-only memory
        else:
            tensor.copy_(torch.from_numpy(array.copy()))
    except TypeError as error:
        raise WrongArrays(f"array {name!r} is of type {array.dtype}; the model's is {tensor.dtype}") from error
