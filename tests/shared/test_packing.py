"""Packed contents: what is packed comes out again, to the bit; what is not as its header says is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from astrofed.shared import packing
from astrofed.shared.blobs import Blobs, WrongBlob

ARRAYS = ArrayRecord(
    {
        "w": Array(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "empty": Array(np.zeros((0, 4))),
        "scalar": Array(np.array(-1, dtype=np.int64)),
    }
)
CONTENT = RecordDict(
    {
        "arrays": ARRAYS,
        "config": ConfigRecord({"plan": "ä{}", "round": 3, "sure": True, "sig": b"\x00\xff", "rate": 0.1, "l": [1, 2]}),
        "metrics": MetricRecord({"loss": 0.1 + 0.2, "n": 2**60, "nan": math.nan, "inf": math.inf}),
    }
)


def assert_same(found: RecordDict, wanted: RecordDict) -> None:
    assert list(found) == list(wanted)
    for name, record in wanted.items():
        assert type(found[name]).__name__ == type(record).__name__
        assert list(found[name]) == list(record)
        for key, value in record.items():
            other = found[name][key]
            if isinstance(value, Array):
                mine = (other.dtype, tuple(other.shape), other.stype, other.data)
                assert mine == (value.dtype, tuple(value.shape), value.stype, value.data)
            else:
                assert type(other) is type(value) and repr(other) == repr(value)


def test_every_kind_of_record_comes_out_as_it_went_in() -> None:
    packed = packing.pack(CONTENT)
    assert list(packed) == ["packed"]
    assert packing.is_packed(packed) and not packing.is_packed(CONTENT)
    assert_same(packing.unpack(packed), CONTENT)
    assert packing.settings_of(packed, "config")["sig"] == b"\x00\xff"


def test_large_arrays_travel_beside_the_header() -> None:
    content = RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(packing.INLINE, dtype=np.uint8))})})
    packed = packing.pack(content)
    assert list(packed) == ["packed", "arrays"]
    assert_same(packing.unpack(packed), content)


def test_large_arrays_lie_in_a_blob_where_there_is_a_place_for_it(tmp_path: Path) -> None:
    blobs, large = Blobs(tmp_path), Array(np.arange(packing.INLINE // 8, dtype=np.float64))
    content = RecordDict({"arrays": ArrayRecord({"w": large, "v": Array(np.ones(3))}), "config": CONTENT["config"]})
    packed = packing.pack(content, blobs)
    (record,) = packed.values()
    assert isinstance(record, ConfigRecord) and packing.form_of(packed) is packing.Form.WITH_BLOBS
    blob = packing.blob_of(record)
    assert blob is not None and blobs.has(blob.id) and packing.settings_of(packed, "config")["round"] == 3
    assert_same(packing.unpack(packed, blobs), content)
    with pytest.raises(packing.MalformedPack, match="without the bytes"):
        packing.unpack(packed)
    blobs.delete(blob.id)
    with pytest.raises(WrongBlob, match="not there"):
        packing.unpack(packed, blobs)
    small = packing.pack(CONTENT, blobs)
    assert packing.form_of(small) is packing.Form.WITH_BLOBS and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("named", [{"blob": "ab", "bytes": 1}, {"blob": "a" * 64}, {"blob": 1, "bytes": 1}])
def test_what_can_not_be_a_blob_is_refused(named: dict[str, str | int]) -> None:
    with pytest.raises(packing.MalformedPack):
        packing.blob_of(ConfigRecord(named))  # type: ignore[arg-type]


@given(st.dictionaries(st.text(max_size=5), st.one_of(st.booleans(), st.floats(), st.text(), st.binary()), max_size=5))
@settings(max_examples=50, deadline=None)
def test_settings_of_any_value_come_out_again(values: dict[str, bool | float | str | bytes]) -> None:
    content = RecordDict({"config": ConfigRecord(values)})
    assert_same(packing.unpack(packing.pack(content)), content)


def changed(**entries: object) -> RecordDict:
    record = packing.pack(CONTENT)["packed"]
    assert isinstance(record, ConfigRecord)
    return RecordDict({"packed": ConfigRecord({**dict(record.items()), **entries})})  # type: ignore[arg-type]


def arrays_header(size: object, shape: object = (1,), dtype: object = "float32") -> str:
    return json.dumps([["arrays", "arrays", [["w", dtype, shape, "numpy.ndarray", size]]]])


@pytest.mark.parametrize(
    "content",
    [
        changed(format=2),
        changed(header="[["),
        changed(header="7"),
        changed(header="[1]"),
        changed(header='[["a","code",[]]]'),
        changed(header='[["a","config",[["k",{"b":1}]]]]'),
        changed(header='[["a","config",[["k",{"bytes":"?"}]]]]'),
        changed(header='[["a","config",[["k",null]]]]'),
        changed(header='[["a","metrics",[["k","text"]]]]'),
        changed(header="[" * 100_000),
        changed(header=arrays_header(10**9)),
        changed(header=arrays_header(-1)),
        changed(header=arrays_header("1")),
        changed(header=arrays_header(0, shape=["x"])),
        changed(header=arrays_header(0, dtype=1)),
        changed(arrays=b"too short"),
        changed(arrays="text"),
        RecordDict({"packed": ConfigRecord({"format": 1, "header": "[]"})}),
        CONTENT,
    ],
)
def test_what_is_not_as_its_header_says_is_refused(content: RecordDict) -> None:
    with pytest.raises(packing.MalformedPack):
        packing.unpack(content)


def test_a_content_without_the_wanted_settings_is_refused() -> None:
    with pytest.raises(packing.MalformedPack, match="no record of settings 'other'"):
        packing.settings_of(packing.pack(CONTENT), "other")
