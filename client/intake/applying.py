"""A customer's table in the platform's columns and units, as its confirmed contract says."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from astrofed.client.data.mistakes import MissingColumn, WrongColumnType, WrongUnits
from astrofed.client.data.table import Column, Table, build_table
from astrofed.client.intake.contract import BadContract, ColumnContract, Contract, NotConfirmed
from astrofed.client.intake.vocabulary import ERRORS, LIMITS, NUMBERS, TEXTS, conversion, unit_of, units_of
from astrofed.shared.models.planet_layout import TARGETS


def apply_contract(source: pa.Table, contract: Contract, where: str) -> Table:
    """Return the dataset that a contract makes of a customer's table. Columns that it lacks are absent values.

    Raises:
        NotConfirmed: the contract holds guesses that nobody has confirmed.
        BadContract, MissingColumn, WrongColumnType, WrongUnits, WrongContract: the contract or the data; what and why.
    """
    if not contract.confirmed:
        raise NotConfirmed(
            f"{where}: the contract guesses {', '.join(contract.guesses) or 'something'}; look at it, correct it, set "
            "confirmed = true and give it by --contract, or confirm it as it is by --yes"
        )
    known = {*TEXTS, *NUMBERS, *ERRORS, *LIMITS}
    strange = sorted(set(contract.columns) - known)
    if strange:
        raise BadContract(f"{where}: the contract names {strange[0]!r}, which is no column of the platform's")
    columns: dict[str, Column] = {}
    for name in TEXTS:
        columns[name] = _text(source, contract.columns.get(name), where)
    for name in NUMBERS:
        columns[name] = _numbers(source, name, contract.columns.get(name), where)
    for name in TARGETS:
        given = contract.columns.get(f"{name}err1")
        if given is not None and given.source is None and given.relative is not None:
            columns[f"{name}err1"] = np.abs(columns[name]) * given.relative
        else:
            columns[f"{name}err1"] = _numbers(source, f"{name}err1", given, where)
    for name in LIMITS:
        columns[name] = _numbers(source, name, contract.columns.get(name), where)
    units = {name: unit_of(name) for name in (*NUMBERS, *ERRORS, *LIMITS)}
    return build_table(columns, units, contract.privacy_unit, contract.privacy_key, where=where)


def _text(source: pa.Table, column: ColumnContract | None, where: str) -> NDArray[np.str_]:
    if column is None or column.source is None:
        return np.full(source.num_rows, "", dtype=np.str_)
    values = _taken(source, column.source, where)
    return np.array(["" if value is None else str(value) for value in values.to_pylist()], dtype=np.str_)


def _numbers(source: pa.Table, name: str, column: ColumnContract | None, where: str) -> NDArray[np.float64]:
    if column is None or column.source is None:
        return np.full(source.num_rows, np.nan)
    values = _taken(source, column.source, where)
    kind = values.type
    if pa.types.is_boolean(kind):
        values = values.cast(pa.int8())
    elif not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise WrongColumnType(f"{where}: column {column.source!r} holds {kind}; {name} must be numbers")
    rule = conversion(name, column.unit or "")
    if rule is None:
        raise WrongUnits(
            f"{where}: column {column.source!r} is in {column.unit!r}; {name} can be in: {', '.join(units_of(name))}"
        )
    factor, offset = rule
    plain = np.array(values.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)
    return np.asarray(plain * factor + offset)


def _taken(source: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    if name not in source.column_names:
        raise MissingColumn(f"{where}: the contract takes {name!r}, which is not in the data")
    return source.column(name)
