"""Parquet tables: roundtrip, contract, and every way in which a file can be wrong."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astrofed.client.data.mistakes import (
    MissingColumn,
    TableCorrupt,
    TableExists,
    TableMissing,
    TooFewRows,
    WrongColumnType,
    WrongContract,
    WrongUnits,
)
from astrofed.client.data.table import Table, build_table, read_table, write_table

NAMES = np.array(["b", "c", "d"])


def table() -> Table:
    columns = {"pl_name": NAMES, "pl_eqt": np.array([300.0, np.nan, 1200.0]), "host": np.array(["s", "", "t"])}
    return build_table(columns, {"pl_eqt": "K"}, "planet", "pl_name", attributes={"licence": "CC0-1.0"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_table(table(), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def stored(path: Path, columns: dict[str, object], metadata: dict[str, str] | None = None) -> Path:
    contract = {"privacy_unit": "planet", "privacy_key": "pl_name"} if metadata is None else metadata
    pq.write_table(pa.table(columns).replace_schema_metadata(contract), path)
    return path


def test_roundtrip_keeps_everything(path: Path) -> None:
    back = read_table(path)
    assert back.fingerprint == table().fingerprint
    assert (back.privacy_unit, back.privacy_key, back.num_units, len(back)) == ("planet", "pl_name", 3, 3)
    assert back.attributes == {"licence": "CC0-1.0"}
    np.testing.assert_array_equal(back.numbers("pl_eqt", "K"), [300.0, np.nan, 1200.0])
    assert back.text("host").tolist() == ["s", "", "t"]


@settings(deadline=None, derandomize=True, max_examples=20)
@given(values=st.lists(st.floats(allow_infinity=False), min_size=1, max_size=8))
def test_any_numbers_roundtrip(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    names = np.array([f"p{i}" for i in range(len(values))])
    original = build_table({"n": names, "x": np.array(values)}, {"x": "1"}, "planet", "n")
    target = tmp_path_factory.mktemp("any") / "t.parquet"
    write_table(original, target)
    assert read_table(target).fingerprint == original.fingerprint


def test_fingerprint_sees_values_units_and_contract_but_not_order() -> None:
    base = table()
    columns = dict(base.columns)
    changed = {**columns, "pl_eqt": np.array([300.0, np.nan, 1201.0])}
    variants = [
        build_table(changed, base.units, "planet", "pl_name", attributes=base.attributes),
        build_table(columns, {"pl_eqt": "degC"}, "planet", "pl_name", attributes=base.attributes),
        build_table(columns, base.units, "star", "pl_name", attributes=base.attributes),
        build_table(columns, base.units, "planet", "pl_name", attributes={}),
    ]
    assert len({base.fingerprint, *(v.fingerprint for v in variants)}) == 5
    turned = build_table(dict(reversed(columns.items())), base.units, "planet", "pl_name", attributes=base.attributes)
    assert turned.fingerprint == base.fingerprint


def test_only_asked_columns_are_read_and_the_key_with_them(path: Path) -> None:
    assert list(read_table(path, columns=["pl_eqt"]).columns) == ["pl_eqt", "pl_name"]


def test_integers_booleans_and_dictionaries_are_read(tmp_path: Path) -> None:
    field = {"units": "1"}
    schema = pa.schema(
        [
            pa.field("pl_name", pa.string()),
            pa.field("n", pa.int32(), metadata=field),
            pa.field("flag", pa.bool_(), metadata=field),
            pa.field("method", pa.dictionary(pa.int32(), pa.string())),
        ],
        metadata={"privacy_unit": "planet", "privacy_key": "pl_name"},
    )
    method = pa.array(["Transit", None]).dictionary_encode()
    pq.write_table(
        pa.table([["a", "b"], pa.array([1, None], pa.int32()), [True, False], method], schema=schema), tmp_path / "t"
    )
    read = read_table(tmp_path / "t")
    np.testing.assert_array_equal(read.numbers("n", "1"), [1.0, np.nan])
    np.testing.assert_array_equal(read.numbers("flag", "1"), [1.0, 0.0])
    assert read.text("method").tolist() == ["Transit", ""]


def test_columns_are_read_only(path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        read_table(path).numbers("pl_eqt", "K")[0] = 1.0


def test_no_file_and_no_parquet(tmp_path: Path) -> None:
    with pytest.raises(TableMissing, match="is no file"):
        read_table(tmp_path / "nothing.parquet")
    (tmp_path / "text.parquet").write_text("pl_name,pl_eqt\n")
    with pytest.raises(TableCorrupt, match=r"text\.parquet can't be read as Parquet"):
        read_table(tmp_path / "text.parquet")


def test_damaged_bytes_are_found(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(TableCorrupt, match=r"t\.parquet can't be read"):
        read_table(path)


def test_one_flipped_data_byte_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = np.array([f"p{i}" for i in range(200)])
    write_table(build_table({"n": names, "x": rng.normal(size=200)}, {"x": "1"}, "planet", "n"), tmp_path / "t")
    content = bytearray((tmp_path / "t").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(TableCorrupt, match="can't be read as Parquet"):
        read_table(tmp_path / "t")


def test_a_missing_column_says_its_nearest(path: Path) -> None:
    with pytest.raises(MissingColumn, match="'pl_eqtt' is missing; nearest: pl_eqt"):
        read_table(path, columns=["pl_eqtt"])
    with pytest.raises(MissingColumn, match="'pl_eq' is missing; nearest: pl_eqt"):
        read_table(path).numbers("pl_eq", "K")


def test_another_unit_or_type_than_asked(path: Path) -> None:
    read = read_table(path)
    with pytest.raises(WrongUnits, match="'pl_eqt' is in 'K'; it must be in 'degC'"):
        read.numbers("pl_eqt", "degC")
    with pytest.raises(WrongColumnType, match="'host' holds text"):
        read.numbers("host", "K")
    with pytest.raises(WrongColumnType, match="'pl_eqt' holds numbers"):
        read.text("pl_eqt")


def test_too_few_rows(path: Path) -> None:
    with pytest.raises(TooFewRows, match="has 3 rows; at least 10"):
        read_table(path, min_rows=10)


def test_a_column_without_unit(tmp_path: Path) -> None:
    with pytest.raises(WrongUnits, match="'x' has no unit"):
        read_table(stored(tmp_path / "t", {"pl_name": ["a"], "x": [1.0]}))


def test_a_column_of_another_type(tmp_path: Path) -> None:
    with pytest.raises(WrongColumnType, match="'x' holds list"):
        read_table(stored(tmp_path / "t", {"pl_name": ["a"], "x": [[1.0]]}))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [({}, "lack 'privacy_unit'"), ({"privacy_unit": "planet"}, "lack 'privacy_key'")],
)
def test_no_privacy_contract(tmp_path: Path, metadata: dict[str, str], words: str) -> None:
    with pytest.raises(WrongContract, match=words):
        read_table(stored(tmp_path / "t", {"pl_name": ["a"]}, metadata))


def test_a_privacy_key_with_holes(tmp_path: Path) -> None:
    with pytest.raises(WrongContract, match="'pl_name' is empty in 1 rows"):
        read_table(stored(tmp_path / "t", {"pl_name": ["a", None]}))


def test_a_privacy_key_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(MissingColumn, match="pl_name"):
        read_table(stored(tmp_path / "t", {"name": ["a"]}))


def test_a_privacy_key_of_numbers_and_ragged_columns() -> None:
    with pytest.raises(WrongContract, match="must be a text column"):
        build_table({"n": np.array([1.0])}, {"n": "1"}, "planet", "n")
    with pytest.raises(WrongContract, match="different lengths"):
        build_table({"n": NAMES, "x": np.array([1.0])}, {"x": "1"}, "planet", "n")


def test_nothing_is_overwritten(path: Path) -> None:
    with pytest.raises(TableExists, match=r"t\.parquet exists already"):
        write_table(table(), path)
    assert [file.name for file in path.parent.iterdir()] == ["t.parquet"]
