"""Arrays on the wire: Flower's records to and from torch and numpy, without copies that are not needed.

Flower stores an array as the bytes of a `.npy` file. Reading gives a read-only view into those bytes; writing copies
once. Nothing is ever unpickled.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor, nn

from astrofed.shared.errors import AstrofedError

NPY = "numpy.ndarray"  # Flower's name for arrays stored as `.npy`


class MalformedArray(AstrofedError):
    """An array on the wire whose bytes are not what they say."""


class WrongArrays(AstrofedError):
    """The arrays that came are not those of the model: names, shapes or types differ."""


def from_numpy(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Return Flower's record of named arrays of any shape; C-contiguous bytes, one copy."""
    record = ArrayRecord()
    for name, array in arrays.items():
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        data = b"".join((_header(array.dtype.str, array.shape), flat.data))
        record[name] = Array(str(array.dtype), tuple(array.shape), NPY, data)
    return record


def to_numpy(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Return read-only views into a record's bytes, by name, in the record's order.

    Raises:
        MalformedArray: an array's bytes are not a `.npy` file of the size that its header says, or hold objects.
    """
    return {name: view(array, name) for name, array in record.items()}


def view(array: Array, name: str) -> NDArray[Any]:
    """Return a read-only view into one array's bytes (errors as `to_numpy`)."""
    if array.stype != NPY:
        raise MalformedArray(f"array {name!r} is stored as {array.stype!r}; only {NPY!r} is read")
    try:
        shape, fortran, dtype, start = _parse(array.data[: _header_length(array.data)])
    except Exception as error:  # numpy's parser raises whatever a crafted header makes Python raise
        raise MalformedArray(f"array {name!r} does not begin with a .npy header: {error}") from error
    if dtype.hasobject:
        raise MalformedArray(f"array {name!r} holds Python objects; only numbers are read")
    if dtype.kind not in "biufc" or len(shape) > 32 or not all(0 <= side < 2**48 for side in shape):
        raise MalformedArray(f"array {name!r} is not an array of numbers, or of impossible shape")
    count = math.prod(shape)
    if len(array.data) - start != count * dtype.itemsize:
        raise MalformedArray(
            f"array {name!r} has {len(array.data) - start} bytes; {shape} of {dtype} are {count * dtype.itemsize}"
        )
    flat = np.frombuffer(array.data, dtype=dtype, count=count, offset=start)
    try:
        return flat.reshape(shape, order="F" if fortran else "C")
    except (ValueError, OverflowError) as error:
        raise MalformedArray(f"array {name!r} can't have the shape {shape}: {error}") from error


def from_state_dict(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Return Flower's record of a model's state."""
    return from_numpy({name: tensor.detach().cpu().numpy() for name, tensor in state.items()})


def load_into(model: nn.Module, record: ArrayRecord) -> None:
    """Copy a record's arrays into a model's parameters and buffers.

    Raises:
        WrongArrays: names or shapes are not the model's.
        MalformedArray: see `to_numpy`.
    """
    state = model.state_dict()
    if state.keys() != record.keys():
        absent, extra = sorted(state.keys() - record.keys()), sorted(record.keys() - state.keys())
        raise WrongArrays(
            f"the arrays are not those of the model: absent {absent or 'none'}, unknown {extra or 'none'}"
        )
    with torch.no_grad():
        for name, tensor in state.items():
            array = view(record[name], name)
            if array.shape != tuple(tensor.shape):
                raise WrongArrays(f"array {name!r} has the shape {array.shape}; the model's is {tuple(tensor.shape)}")
            tensor.copy_(_as_tensor(array))


def _as_tensor(array: NDArray[Any]) -> Tensor:
    # torch warns that a read-only buffer could be written to; this tensor is only read from.
    interface = dict(array.__array_interface__)
    interface["data"] = (interface["data"][0], False)
    return torch.from_numpy(np.asarray(_Alias(interface, array)))


class _Alias:
    """Lends an array's memory under another interface and keeps it alive."""

    def __init__(self, interface: dict[str, Any], owner: NDArray[Any]) -> None:
        self.__array_interface__ = interface
        self.owner = owner


@lru_cache(maxsize=4096)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _header_length(data: bytes) -> int:
    if data[:6] != b"\x93NUMPY" or len(data) < 12:
        raise ValueError("the magic bytes are missing")
    if data[6] == 1:
        return 10 + int.from_bytes(data[8:10], "little")
    return min(12 + int.from_bytes(data[8:12], "little"), 12 + 65536)


@lru_cache(maxsize=4096)
def _parse(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, whether Fortran-ordered, dtype, and where the data begin."""
    buffer = BytesIO(head)
    version = np.lib.format.read_magic(buffer)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} is not one that arrays of numbers are written in")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(buffer)
    return shape, fortran, dtype, buffer.tell()
