"""Tables as Parquet files: numeric and text columns, a unit for each numeric column, and the privacy contract.

A column's unit stands in its field metadata (`units`); the schema metadata hold `privacy_unit` (what one protected unit
is, say "planet") and `privacy_key` (the column that names each row's unit).
"""

import difflib
import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from astrofed.client.data.contract import normalise_unit
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

if TYPE_CHECKING:
    import pyarrow as pa

Column = NDArray[np.float64] | NDArray[np.str_]
_OWN_KEYS = ("pandas", "ARROW:schema", "privacy_unit", "privacy_key")


@dataclass(frozen=True)
class Table:
    """One participant's table. Numbers are float64 with NaN where a value is absent; text is "" where absent."""

    columns: Mapping[str, Column]  # name -> [row], read-only
    units: Mapping[str, str]  # numeric columns only; "1" for what has no dimension
    privacy_unit: str
    privacy_key: str  # the column that names each row's privacy unit
    attributes: Mapping[str, str]  # title, licence, provenance …
    fingerprint: str  # sha256 of columns, units and contract, wherever and however stored

    def __len__(self) -> int:
        return len(self.columns[self.privacy_key])

    @property
    def num_units(self) -> int:
        """How many privacy units the rows belong to."""
        return len(np.unique(self.columns[self.privacy_key]))

    def numbers(self, name: str, unit: str) -> NDArray[np.float64]:
        """Return a numeric column [row] in `unit`.

        Raises:
            MissingColumn, WrongColumnType, WrongUnits: absent (the message says the nearest), text, or in another unit.
        """
        values = self._column(name)
        if values.dtype.kind != "f":
            raise WrongColumnType(f"column {name!r} holds text; it must hold numbers in {unit}")
        if normalise_unit(self.units[name]) != normalise_unit(unit):
            raise WrongUnits(f"column {name!r} is in {self.units[name]!r}; it must be in {unit!r}: convert its values")
        return np.asarray(values, dtype=np.float64)

    def text(self, name: str) -> NDArray[np.str_]:
        """Return a text column [row].

        Raises:
            MissingColumn, WrongColumnType: absent (the message says the nearest), or numbers.
        """
        values = self._column(name)
        if values.dtype.kind != "U":
            raise WrongColumnType(f"column {name!r} holds numbers; it must hold text")
        return np.asarray(values, dtype=np.str_)

    def _column(self, name: str) -> Any:
        if name not in self.columns:
            raise MissingColumn(_missing(name, list(self.columns)))
        return self.columns[name]


def read_table(path: Path, *, columns: Sequence[str] | None = None, min_rows: int = 1) -> Table:
    """Read a Parquet table; with `columns`, only those (and the privacy key).

    Raises:
        TableMissing, TableCorrupt: no file, or not Parquet.
        WrongContract, WrongUnits: no privacy unit or key, or a numeric column without a unit.
        MissingColumn, WrongColumnType, TooFewRows: what the content lacks; messages name the path and the mend.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise TableMissing(f"{path} is no file; give the path of a Parquet table")
    try:
        stored = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise TableCorrupt(f"{path} can't be read as Parquet: {error}") from error
    contract = {
        k.decode(): v.decode() for k, v in (stored.schema.metadata or {}).items() if k.decode() not in _OWN_KEYS[:2]
    }
    for key in ("privacy_unit", "privacy_key"):
        if not contract.get(key):
            raise WrongContract(f"{path}: the schema metadata lack {key!r}; name one privacy unit and its column")
    names = list(stored.column_names) if columns is None else [*columns]
    if contract["privacy_key"] not in names:
        names.append(contract["privacy_key"])
    for name in names:
        if name not in stored.column_names:
            raise MissingColumn(f"{path}: {_missing(name, stored.column_names)}")
    if stored.num_rows < min_rows:
        raise TooFewRows(f"{path} has {stored.num_rows} rows; at least {min_rows} are needed")
    arrays: dict[str, Column] = {}
    units: dict[str, str] = {}
    for name in names:
        arrays[name] = _values(stored.column(name), name, path)
        if arrays[name].dtype.kind == "f":
            units[name] = _unit(stored.schema.field(name), path)
    attributes = {key: value for key, value in contract.items() if key not in _OWN_KEYS}
    return build_table(
        arrays, units, contract["privacy_unit"], contract["privacy_key"], attributes=attributes, where=str(path)
    )


def build_table(
    columns: Mapping[str, Column],
    units: Mapping[str, str],
    privacy_unit: str,
    privacy_key: str,
    *,
    attributes: Mapping[str, str] = MappingProxyType({}),
    where: str = "table",
) -> Table:
    """Check columns [row] of equal length, a unit for every numeric one, a full text key; return the table.

    Raises:
        WrongContract, WrongUnits, MissingColumn: the first mistake found.
    """
    if privacy_key not in columns:
        raise MissingColumn(f"{where}: {_missing(privacy_key, list(columns))}")
    if columns[privacy_key].dtype.kind != "U":
        raise WrongContract(f"{where}: the privacy key {privacy_key!r} must be a text column")
    absent = int(np.count_nonzero(columns[privacy_key] == ""))
    if absent:
        raise WrongContract(
            f"{where}: the privacy key {privacy_key!r} is empty in {absent} rows; name each row's {privacy_unit}"
        )
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise WrongContract(f"{where}: columns have different lengths: {lengths}")
    frozen: dict[str, Column] = {}
    for name, values in columns.items():
        if values.dtype.kind == "f" and name not in units:
            raise WrongUnits(f"{where}: column {name!r} has no unit; give one ('1' for what has no dimension)")
        frozen[name] = values.copy()
        frozen[name].flags.writeable = False
    kept = {name: units[name] for name in frozen if frozen[name].dtype.kind == "f"}
    return Table(
        MappingProxyType(frozen),
        MappingProxyType(kept),
        privacy_unit,
        privacy_key,
        MappingProxyType(dict(attributes)),
        _fingerprint(frozen, kept, [privacy_unit, privacy_key, dict(attributes)]),
    )


def write_table(table: Table, path: Path) -> None:
    """Write a table as Parquet (zstd); the file appears at once, when it is complete.

    Raises:
        TableExists: something is there already; nothing is overwritten.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.exists() or path.is_symlink():
        raise TableExists(f"{path} exists already; remove it or write to another path")
    arrays, schema = [], []
    for name, values in table.columns.items():
        number = values.dtype.kind == "f"
        kind = pa.float64() if number else pa.string()
        absent = np.isnan(values) if number else values == ""
        arrays.append(pa.array(values.tolist(), type=kind, mask=absent))
        schema.append(pa.field(name, kind, metadata={"units": table.units[name]} if number else None))
    metadata = {**table.attributes, "privacy_unit": table.privacy_unit, "privacy_key": table.privacy_key}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f".{path.name}.{secrets.token_hex(4)}.unfinished"
    try:
        stored = pa.Table.from_arrays(arrays, schema=pa.schema(schema, metadata=metadata))
        pq.write_table(stored, unfinished, compression="zstd", compression_level=19, write_page_checksum=True)
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _values(stored: "pa.ChunkedArray", name: str, path: Path) -> Column:
    import pyarrow as pa

    kind = stored.type
    if pa.types.is_dictionary(kind):
        stored, kind = stored.cast(kind.value_type), kind.value_type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        whole = stored.cast(pa.int8()) if pa.types.is_boolean(kind) else stored
        return np.array(whole.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        try:
            return np.array([value or "" for value in stored.to_pylist()], dtype=np.str_)
        except UnicodeDecodeError as error:
            raise TableCorrupt(f"{path}: column {name!r} holds text that is not UTF-8: {error}") from error
    raise WrongColumnType(f"{path}: column {name!r} holds {kind}; only numbers and text can be read")


def _unit(field: "pa.Field", path: Path) -> str:
    unit = (field.metadata or {}).get(b"units", b"").decode()
    if not unit:
        raise WrongUnits(f"{path}: column {field.name!r} has no unit; set `units` in its field metadata ('1' for none)")
    return str(unit)


def _missing(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"column {name!r} is missing; {'nearest' if near else 'it has'}: {', '.join(near or names) or 'none'}"


def _fingerprint(columns: Mapping[str, Column], units: Mapping[str, str], contract: Sequence[object]) -> str:
    digest = hashlib.sha256(json.dumps([contract, dict(sorted(units.items()))], sort_keys=True).encode())
    for name in sorted(columns):
        values = columns[name]
        digest.update(f"\ncolumn {name} {len(values)}\n".encode())
        if values.dtype.kind == "f":
            canonical = np.where(np.isnan(values), np.nan, values).astype("<f8")
            digest.update(canonical.tobytes())
        else:
            digest.update(json.dumps(values.tolist()).encode())
    return digest.hexdigest()
