"""Arrays on the wire: the same bytes as numpy writes, views without copies, and bytes that lie refused by name."""

import math
import struct
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import nn

from astrofed.shared.array_forms import stored, view
from astrofed.shared.arrays import Expected, WrongArrays, from_numpy, from_state_dict, load_into, to_numpy
from astrofed.shared.npy import NPY, MalformedArray

DTYPES = st.one_of(
    hnp.floating_dtypes(endianness="="),
    hnp.integer_dtypes(endianness="="),
    hnp.unsigned_integer_dtypes(endianness="="),
    hnp.boolean_dtypes(),
)
ARRAYS = DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)))


def npy(array: NDArray[Any], **options: Any) -> bytes:
    buffer = BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True, **options)
    return buffer.getvalue()


def header(text: str, version: int = 1) -> bytes:
    """Return the beginning of a .npy file with any text as its header."""
    length = struct.pack("<H" if version == 1 else "<I", len(text) + 1)
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode("latin1") + b"\n"


def described(shape: str = "(2,)", descr: str = "'<f4'", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


def sent(data: bytes) -> Array:
    return Array("float32", (2,), NPY, data)


@given(ARRAYS)
def test_flower_reads_what_is_written(array: NDArray[Any]) -> None:
    written = from_numpy({"a": array})["a"]
    np.testing.assert_array_equal(written.numpy(), array, strict=True)
    assert (written.dtype, written.shape, written.stype) == (str(array.dtype), array.shape, NPY)
    assert written == Array(np.ascontiguousarray(array).reshape(array.shape))  # byte for byte what Flower would write


@given(ARRAYS)
def test_what_flower_writes_is_read(array: NDArray[Any]) -> None:
    found = view(Array(array), "a")
    np.testing.assert_array_equal(found, array, strict=True)


def test_order_and_strides_make_no_difference() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for other in (np.asfortranarray(array), array.transpose(2, 0, 1), array[:, ::-1], array[..., :0]):
        np.testing.assert_array_equal(view(from_numpy({"a": other})["a"], "a"), other, strict=True)
        np.testing.assert_array_equal(view(Array(other), "a"), other, strict=True)  # Flower may write Fortran order


def test_views_share_memory_and_are_read_only() -> None:
    record = from_numpy({"a": np.arange(1000.0)})
    found = to_numpy(record)["a"]
    assert np.shares_memory(found, np.frombuffer(record["a"].data, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


def test_names_and_their_order_are_kept() -> None:
    arrays = {name: np.zeros(1) for name in ("z", "a", "m.b")}
    assert list(from_numpy(arrays)) == list(to_numpy(from_numpy(arrays))) == ["z", "a", "m.b"]


def test_arrays_survive_flowers_transport() -> None:
    """Records are taken apart into objects and put together again on the way through a SuperLink or Ray."""
    record = from_numpy({"a": np.arange(5.0), "b": np.ones((2, 3), dtype=np.float32)})
    children: dict[str, Any] = {}
    for array in record.values():
        chunks = array.children
        children[array.object_id] = Array.inflate(array.deflate(), chunks)
    found = ArrayRecord.inflate(record.deflate(), children)
    assert found == record


def test_a_large_header_of_version_2_is_read() -> None:
    array = np.arange(6.0).reshape(2, 3)
    assert npy(array, version=(2, 0))[6] == 2
    np.testing.assert_array_equal(view(sent(npy(array, version=(2, 0))), "a"), array, strict=True)


GOOD = npy(np.arange(2, dtype=np.float32))
LIES = {
    "nothing": b"",
    "magic only": b"\x93NUMPY",
    "other magic": b"\x80" + GOOD[1:],
    "cut in the header": GOOD[:40],
    "a byte short": GOOD[:-1],
    "a byte long": GOOD + b"\0",
    "no data": GOOD[:128],
    "version 3": npy(np.arange(2, dtype=np.float32), version=(3, 0)),
    "version 9": GOOD[:6] + b"\x09" + GOOD[7:],
    "length beyond the end": GOOD[:8] + b"\xff\xff" + GOOD[10:],
    "objects": npy(np.array([{}, {}], dtype=object)),
    "records": npy(np.zeros(1, dtype=[("a", "f4"), ("b", "f4")])),
    "text": npy(np.array(["ab"])),
    "bytes": npy(np.array([b"ab"])),
    "dates": npy(np.array(["2026-11-24"], dtype="M8[D]")),
    "void": npy(np.zeros(2, dtype="V4")),
    "negative side": header(described("(-2,)")) + bytes(8),
    "two negative sides": header(described("(-1, -2)")) + bytes(8),
    "huge side": header(described("(9223372036854775807,)")),
    "huge product of nothing": header(described("(0, 281474976710655, 281474976710655)")),
    "overflowing product": header(described("(4294967296, 4294967296)")),
    "40 dimensions": header(described("(" + "1," * 40 + ")")) + bytes(4),
    "shape is no tuple": header(described("2")) + bytes(8),
    "float side": header(described("(2.0,)")) + bytes(8),
    "text side": header(described("('2',)")) + bytes(8),
    "unknown type": header(described(descr="'<q9'")) + bytes(8),
    "type is a number": header(described(descr="7")) + bytes(8),
    "missing key": header("{'descr': '<f4', 'shape': (2,), }") + bytes(8),
    "a call": header("__import__('os').system('true')") + bytes(8),
    "deep nesting": header("(" * 3000) + bytes(8),
    "deep nesting, version 2": header("(" * 60000, version=2) + bytes(8),
    "unclosed": header("{'descr': '<f4'") + bytes(8),
    "null byte": header("\0" * 20) + bytes(8),
    "empty header": header("") + bytes(8),
    "sub-array type": header(described("()", descr="('<f4', (2,))")) + bytes(8),
}


@pytest.mark.parametrize("data", LIES.values(), ids=LIES.keys())
def test_bytes_that_lie_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(MalformedArray, match=r"'layer\.weight'") as caught:
        view(sent(data), "layer.weight")
    assert len(str(caught.value)) < 100_000


def test_other_ways_to_store_are_refused() -> None:
    with pytest.raises(MalformedArray, match=r"'a' is stored as 'pickle'; only 'numpy\.ndarray'"):
        view(Array("float32", (2,), "pickle", GOOD), "a")


def test_claims_beside_the_bytes_are_not_believed() -> None:
    found = view(Array("int64", (7, 7), NPY, GOOD), "a")
    assert found.shape == (2,) and found.dtype == np.float32


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    _read_or_refuse(data)


@given(st.data())
def test_a_changed_file_is_read_or_refused(data: st.DataObject) -> None:
    """Whatever a malicious site makes of a valid file, nothing but our own error comes out."""
    base = bytearray(data.draw(st.sampled_from([GOOD, npy(np.ones((3, 2), order="F")), npy(np.zeros((), np.int8))])))
    for _ in range(data.draw(st.integers(1, 4))):
        base[data.draw(st.integers(0, len(base) - 1))] = data.draw(st.integers(0, 255))
    _read_or_refuse(bytes(base[: data.draw(st.integers(0, len(base)))]))
    _read_or_refuse(bytes(base))


@given(st.text(st.characters(max_codepoint=255), max_size=80), st.sampled_from([1, 2]), st.binary(max_size=16))
def test_any_header_is_read_or_refused(text: str, version: int, rest: bytes) -> None:
    _read_or_refuse(header(text, version) + rest)


def _read_or_refuse(data: bytes) -> None:
    try:
        found = view(sent(data), "a")
    except MalformedArray as error:
        assert str(error).startswith("array 'a'")
    else:
        assert found.dtype.kind in "biufc" and found.nbytes == found.dtype.itemsize * math.prod(found.shape)
        assert found.nbytes < len(data)


def network() -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, dtype=torch.float64))
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.uniform_(-1, 1, generator=generator)
    return model


def test_a_models_state_goes_there_and_back() -> None:
    model, other = network(), network()
    for value in other.state_dict().values():
        value.zero_()
    record = from_state_dict(model.state_dict())
    load_into(other, record)
    assert list(record) == list(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert other.state_dict()["1.num_batches_tracked"].dtype == torch.int64
    assert all(parameter.requires_grad for parameter in other.parameters())


def test_loading_neither_warns_nor_ties_the_model_to_the_message() -> None:
    model = network()
    record = from_state_dict(model.state_dict())
    before = {name: array.data for name, array in record.items()}
    load_into(model, record)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(bytes(array.data) == before[name] for name, array in record.items())
    assert from_state_dict(model.state_dict())["0.weight"] != record["0.weight"]


def test_floats_of_another_width_are_converted() -> None:
    model = nn.Linear(2, 1, bias=False)
    for dtype in (np.float64, np.float16, np.int32, ">f4"):
        load_into(model, from_numpy({"weight": np.array([[0.5, 3]]).astype(dtype)}))
        assert model.weight.tolist() == [[0.0 if dtype == np.int32 else 0.5, 3.0]]


def test_arrays_that_are_not_the_models_are_refused() -> None:
    model = nn.Linear(2, 1)
    weight, bias = np.ones((1, 2), np.float32), np.ones(1, np.float32)
    wrong: dict[str, dict[str, NDArray[Any]]] = {
        r"absent \['bias'\], unknown none": {"weight": weight},
        r"absent \['bias'\], unknown \['scale'\]": {"weight": weight, "scale": bias},
        r"'weight' has the shape \(2, 1\); the model's is \(1, 2\)": {"weight": weight.T, "bias": bias},
        r"'bias' has the shape \(\); the model's is \(1,\)": {"weight": weight, "bias": bias[0]},
        r"'bias' is of type complex64; the model's is torch\.float32": {"weight": weight, "bias": bias + 1j},
    }
    for message, arrays in wrong.items():
        with pytest.raises(WrongArrays, match=message):
            load_into(model, from_numpy({name: np.asarray(array) for name, array in arrays.items()}))
    counter = nn.BatchNorm1d(1)
    state = {**to_numpy(from_state_dict(counter.state_dict())), "num_batches_tracked": np.asarray(1.5)}
    with pytest.raises(WrongArrays, match=r"'num_batches_tracked' is of type float64; the model's is torch\.int64"):
        load_into(counter, from_numpy(state))


def test_a_stored_array_is_one_of_flowers() -> None:
    array, flowers = stored(np.dtype("f4"), (2,), GOOD), Array("float32", (2,), NPY, GOOD)
    assert isinstance(array, Array) and array == flowers and flowers == array
    assert array != stored(np.dtype("f4"), (2,), GOOD[:-1] + b"x") and array != "array"
    assert array.is_dirty and array.object_id == flowers.object_id and array.deflate() == flowers.deflate()
    found = array.numpy()
    found += 1  # strategies may work in place: it is a copy
    np.testing.assert_array_equal(array.numpy(), flowers.numpy(), strict=True)


@given(ARRAYS)
def test_what_fits_is_read_without_its_header(array: NDArray[Any]) -> None:
    form = Expected.like(array)
    (written,) = from_numpy({"a": array}).values()
    assert form.fits(written) and form.fits(Array(np.ascontiguousarray(array).reshape(array.shape)))
    np.testing.assert_array_equal(form.flat(written), array.reshape(-1), strict=True)
    np.testing.assert_array_equal(form.stacked([written, written]), np.stack([array.reshape(-1)] * 2), strict=True)


def test_what_does_not_fit() -> None:
    array = np.ones((2, 3), np.float32)
    form = Expected.like(array)
    (written,) = from_numpy({"a": array}).values()
    for other in (array.T, array.astype(">f4"), array.astype("f8"), array[:1], np.asfortranarray(array)):
        assert not form.fits(Array(other))
    assert not form.fits(Array("float32", (2, 3), "other", written.data))
    assert not form.fits(Array("float32", (2, 3), NPY, written.data + b"x"))
