"""The contract of a customer's table, as a file to review: which column is what, in which unit, and what is protected.

Everything that was guessed says so. A contract with guesses is applied only when somebody has confirmed it.
"""

from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
from pydantic import Field

from astrofed.client.data.mistakes import DataMistake, TableCorrupt
from astrofed.client.intake.vocabulary import ERRORS, LIMITS, NUMBERS, TEXTS, meaning, unit_of
from astrofed.shared.files import write_atomically
from astrofed.shared.models.planet_layout import TARGETS
from astrofed.shared.plan import Positive, Section
from astrofed.shared.toml_file import as_model, read_toml

CONTRACT_FILE = "contract.toml"
_HEAD = """\
# What this dataset is taken for. Correct what is wrong, then set confirmed = true and import again with --contract.
# origin: "declared" in the data themselves, "name" where the column's name says it, "guess" where nothing does.

"""


class NotConfirmed(DataMistake):
    """A contract holds guesses that nobody has confirmed."""


class BadContract(DataMistake):
    """A contract file can't be used, or contradicts the data."""


class ColumnContract(Section):
    """Where a column of the dataset comes from."""

    source: str | None = None
    """The customer's own column; None: there is none."""
    unit: str | None = None
    """The unit of the customer's numbers; None for text."""
    relative: Positive | None = None
    """For an error without a column: this share of each value."""
    origin: Literal["declared", "name", "guess"] = "declared"


class Contract(Section):
    """What a customer's table holds, in the platform's words."""

    confirmed: bool = False
    privacy_unit: Annotated[str, Field(min_length=1)]
    privacy_key: Annotated[str, Field(min_length=1)]
    columns: dict[str, ColumnContract]
    left_out: tuple[str, ...] = ()
    """The customer's columns that the platform has no use for."""

    @property
    def guesses(self) -> list[str]:
        """What nobody has declared: the names of columns."""
        return [name for name, column in self.columns.items() if column.origin == "guess"]


def read_source(paths: tuple[Path, ...]) -> pa.Table:
    """Return the rows of all files.

    Raises:
        TableCorrupt: a file is not Parquet, or the files' columns differ.
    """
    try:
        return pa.concat_tables([pq.read_table(path) for path in paths])
    except (pa.ArrowException, OSError) as error:
        raise TableCorrupt(f"{', '.join(str(path) for path in paths)}: can't be read as one table: {error}") from error


def propose(table: pa.Table, where: str, *, unit: str | None = None, key: str | None = None) -> Contract:
    """Return the contract that a table's own metadata and column names suggest.

    Args:
        table: the customer's.
        where: names it in messages.
        unit: what one protected unit is, where the customer says so.
        key: the contract's column that names each row's unit.

    Raises:
        BadContract: no column names the planets.
    """
    declared = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items() if k != b"ARROW:schema"}
    columns: dict[str, ColumnContract] = {}
    left_out = []
    for column in table.column_names:
        found = meaning(column)
        if found is None or found.name in columns:
            left_out.append(column)
            continue
        exact = column == found.name
        columns[found.name] = _column(column, found.name, found.unit, table.schema.field(column), exact=exact)
    if "pl_name" not in columns:
        raise BadContract(
            f"{where}: no column names the planets; rename one of {', '.join(table.column_names)} to pl_name"
        )
    if "hostname" not in columns:
        columns["hostname"] = ColumnContract(source=columns["pl_name"].source, origin="guess")
    for name in TARGETS:
        if name in columns and f"{name}err1" not in columns:
            columns[f"{name}err1"] = ColumnContract(relative=0.1, origin="guess")
    return Contract(
        confirmed=not any(column.origin == "guess" for column in columns.values()),
        privacy_unit=unit or declared.get("privacy_unit", "planet"),
        privacy_key=key or declared.get("privacy_key", "pl_name"),
        columns=dict(sorted(columns.items())),
        left_out=tuple(left_out),
    )


def write_contract(contract: Contract, path: Path) -> None:
    """Write a contract for review.

    Raises:
        CannotWrite: disk full, or not writable.
    """
    data = contract.model_dump(mode="json", exclude_none=True)
    write_atomically(path, (_HEAD + tomli_w.dumps(data)).encode())


def read_contract(path: Path) -> Contract:
    """Read a contract.

    Raises:
        BadContract: the file is missing or no TOML, or a key or value is wrong.
    """
    missing = BadContract(f"contract {path} does not exist; `astrofed data import` writes it")
    return as_model(Contract, read_toml(path, BadContract, missing, "contract "), BadContract, f"contract {path}")


def _column(source: str, name: str, unit: str | None, field: pa.Field, *, exact: bool) -> ColumnContract:
    if name in TEXTS:
        return ColumnContract(source=source, origin="declared" if exact else "name")
    assert name in (*NUMBERS, *ERRORS, *LIMITS)
    said = (field.metadata or {}).get(b"units", b"").decode()
    if said:
        return ColumnContract(source=source, unit=said, origin="declared" if exact else "name")
    if unit is not None:
        return ColumnContract(source=source, unit=unit, origin="name")
    return ColumnContract(source=source, unit=unit_of(name), origin="name" if name in LIMITS else "guess")
