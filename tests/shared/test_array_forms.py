"""Large arrays: the same to Flower as any others, though they lie in memory or in a file."""

import pickle
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray

from astrofed.shared import packing
from astrofed.shared.array_forms import LARGE, InFile, InMemory, let_go, mapping, parts, renamed, size, view
from astrofed.shared.arrays import Expected, from_numpy, to_numpy
from astrofed.shared.blobs import Blobs

VALUES = np.arange(packing.INLINE // 4 + 3, dtype=np.float32).reshape(1, -1)
SMALL = np.array([1, 2, 3])


def in_file(folder: Path) -> ArrayRecord:
    content = RecordDict({"arrays": from_numpy({"small": SMALL, "large": VALUES})})
    blobs = Blobs(folder)
    record = packing.unpack(packing.pack(content, blobs), blobs)["arrays"]
    assert isinstance(record, ArrayRecord)
    return record


def test_large_arrays_of_a_packed_message_stay_in_its_file(tmp_path: Path) -> None:
    record = in_file(tmp_path)
    plain = Array(VALUES)
    large = record["large"]
    assert isinstance(large, InFile) and large == plain and size(large) == len(plain.data)
    for name, values in {"small": SMALL, "large": VALUES}.items():
        found = to_numpy(record)[name]
        assert found.dtype == values.dtype and np.array_equal(found, values) and not found.flags.writeable
        assert np.array_equal(record[name].numpy(), values)
    for path in tmp_path.iterdir():
        path.unlink()
    assert np.array_equal(view(large, "large"), VALUES)  # who has it open reads on


def test_large_arrays_in_memory_are_not_copied() -> None:
    values: NDArray[np.float32] = np.ones(LARGE // 4, np.float32)
    record = from_numpy({"w": values})
    array = record["w"]
    assert isinstance(array, InMemory) and np.shares_memory(to_numpy(record)["w"], values)
    assert array == Array(values) and array.data == Array(values).data and values.flags.writeable
    form = Expected.like(values)
    assert form.fits(array) and np.shares_memory(form.flat(array), values)
    again = pickle.loads(pickle.dumps(array))  # noqa: S301 - our own, as Ray does it
    assert type(again) is Array and again.data == array.data


def test_a_renamed_array_is_the_same_bytes_by_what_they_are(tmp_path: Path) -> None:
    for array in (*in_file(tmp_path).values(), from_numpy({"w": VALUES})["w"], Array(SMALL)):
        values = array.numpy()
        other = renamed(array, values.dtype, values.shape)
        assert other == array and np.array_equal(view(other, "w"), values)


def test_parts_are_all_values_and_mapped_memory_is_let_go(tmp_path: Path) -> None:
    values = view(in_file(tmp_path)["large"], "large")
    assert mapping(values) is not None and mapping(VALUES) is None
    found = np.concatenate([part.copy() for part in parts(values)])
    assert np.array_equal(found, VALUES.reshape(-1))
    let_go(values)
    let_go(VALUES)
    assert np.array_equal(values, VALUES)
    assert np.array_equal(np.concatenate(list(parts(VALUES.T))), VALUES.reshape(-1))
