"""Look at a dataset before it joins a federation: all its problems at once, what it holds, and its statistics."""

import difflib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from astrofed.client.data.contract import AXES, FIELDS
from astrofed.client.data.cube import Cube, open_group, read_cube, read_planet, read_variable, variable_names
from astrofed.client.data.emission import NAMES as EMISSION_NAMES
from astrofed.client.data.emission import read_emission
from astrofed.client.data.mistakes import DataMistake, UnknownDatasetKind
from astrofed.client.data.table import Table, read_table
from astrofed.client.data.world import check_axes, check_field

Severity = Literal["error", "warning"]
Kind = Literal["cube", "table"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong ("error": the data can't be used) or odd ("warning")."""

    severity: Severity
    subject: str  # a variable, a column, "planet", or "dataset"
    mistake: str  # the error class's name, or what kind of oddity
    message: str


@dataclass(frozen=True)
class Report:
    """All that `check_dataset` found; usable where no problem is an error."""

    path: Path
    kind: Kind
    fingerprint: str | None  # None where the data can't be used
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether the data can be used."""
        return all(problem.severity != "error" for problem in self.problems)


@dataclass(frozen=True)
class VariableDescription:
    """A variable or column: name, unit, axes with lengths, whether it was derived here."""

    name: str
    unit: str
    meaning: str
    shape: tuple[tuple[str, int], ...]
    derived: bool = False


@dataclass(frozen=True)
class Description:
    """What a dataset holds, without its values."""

    path: Path
    kind: Kind
    fingerprint: str
    privacy_unit: str
    num_units: int
    num_bytes: int  # on disk
    attributes: tuple[tuple[str, str], ...]
    planet: tuple[tuple[str, str | float], ...]  # constants by name; empty for a table
    variables: tuple[VariableDescription, ...]


@dataclass(frozen=True)
class VariableStats:
    """Statistics of one variable or numeric column in its unit; over a sphere, mean and std are area-weighted."""

    name: str
    unit: str
    count: int  # finite values
    absent: int
    minimum: float
    mean: float
    std: float
    maximum: float


def dataset_kind(path: Path) -> Kind:
    """Return what a path holds: a folder is a cube, a file a table.

    Raises:
        UnknownDatasetKind: nothing there.
    """
    if path.is_dir():
        return "cube"
    if path.is_file():
        return "table"
    raise UnknownDatasetKind(f"{path} does not exist; give a Zarr v3 cube (a folder) or a Parquet table (a file)")


def check_dataset(path: Path) -> Report:
    """Return every problem of a cube or table; mistakes in the data are listed, not raised.

    Raises:
        UnknownDatasetKind: nothing there.
    """
    kind = dataset_kind(path)
    problems: list[Problem] = []
    fingerprint = None
    try:
        if kind == "cube":
            problems += _cube_problems(path)
            if not any(problem.severity == "error" for problem in problems):
                cube = read_cube(path)
                read_emission(path, cube)  # an error, if it is there and damaged
                fingerprint = cube.fingerprint
        else:
            table = read_table(path)
            problems += _table_warnings(table)
            fingerprint = table.fingerprint
    except DataMistake as error:
        problems.append(_problem(error, "dataset"))
    return Report(path, kind, fingerprint, tuple(problems))


def describe_dataset(path: Path) -> Description:
    """Return what a cube or table holds.

    Raises:
        UnknownDatasetKind, DataMistake: nothing there, or not usable (see `read_cube`, `read_table`).
    """
    if dataset_kind(path) == "cube":
        return _describe_cube(read_cube(path), path)
    return _describe_table(read_table(path), path)


def dataset_stats(path: Path) -> tuple[VariableStats, ...]:
    """Return statistics of every field (area-weighted) or numeric column (over its finite values).

    Raises:
        UnknownDatasetKind, DataMistake: nothing there, or not usable (see `read_cube`, `read_table`).
    """
    if dataset_kind(path) == "cube":
        cube = read_cube(path)
        weights = np.cos(np.deg2rad(cube.lat_deg))[:, None]
        return tuple(
            _stats(name, FIELDS[name].unit.name, values.astype(np.float64), weights)
            for name, values in cube.fields.items()
        )
    table = read_table(path)
    return tuple(_stats(name, unit, table.numbers(name, unit), np.ones(1)) for name, unit in table.units.items())


def _problem(error: DataMistake, subject: str, severity: Severity = "error") -> Problem:
    return Problem(severity, subject, type(error).__name__, str(error))


def _cube_problems(path: Path) -> list[Problem]:
    """Each variable is read and checked by itself, so that one mistake doesn't hide the next."""
    problems = []
    group = open_group(path)
    names = variable_names(path)
    try:
        read_planet(group.attrs.asdict(), path)
    except DataMistake as error:
        problems.append(_problem(error, "planet"))
    axes: dict[str, NDArray[np.floating[Any]]] = {}
    fields: dict[str, NDArray[np.floating[Any]]] = {}
    for name, variable in {**AXES, **FIELDS}.items():
        if name in names:
            try:
                (axes if name in AXES else fields)[name] = read_variable(group, variable, path)
            except DataMistake as error:
                problems.append(_problem(error, name))
        elif name in AXES or variable.required:
            message = f"{path}: {name} ({variable.standard_name}, {variable.unit.name}) is missing"
            problems.append(Problem("error", name, "MissingVariable", message))
    if len(axes) == len(AXES):
        try:
            check_axes(axes, str(path))
        except DataMistake as error:
            problems.append(_problem(error, "coordinates"))
        sizes = {name: len(values) for name, values in axes.items()}
        for name, values in fields.items():
            try:
                check_field(name, values.astype(np.float32), sizes, str(path))
            except DataMistake as error:
                problems.append(_problem(error, name))
    return problems + _cube_warnings(names, group.attrs.asdict(), fields, path)


def _cube_warnings(names: list[str], attributes: dict[str, Any], fields: dict[str, Any], path: Path) -> list[Problem]:
    warnings = []
    for name in names:
        if name not in FIELDS and name not in AXES and name not in EMISSION_NAMES:
            near = difflib.get_close_matches(name, [*FIELDS, *AXES], n=1, cutoff=0.5)
            hint = f"; is it {near[0]!r}?" if near else ""
            warnings.append(Problem("warning", name, "unknown variable", f"{path}: {name} is not read{hint}"))
    if "zg" not in names and "phis" not in names:
        text = f"{path}: neither zg nor phis is given, so height is unknown and hydrostatic balance can't be evaluated"
        warnings.append(Problem("warning", "zg", "no height", text))
    for key in ("privacy_unit", "licence"):
        if not attributes.get(key):
            text = f"{path}: the attribute {key!r} is absent; say what one protected unit is and under which licence"
            warnings.append(Problem("warning", "dataset", "no attribute", text))
    for name, low, high in (("ta", 20.0, 1000.0), ("ps", 100.0, 1e7), ("hus", -1e-4, 1.0), ("alb", 0.0, 1.0)):
        if name in fields and (fields[name].min() < low or fields[name].max() > high):
            span = f"{fields[name].min():g} to {fields[name].max():g} {FIELDS[name].unit.name}"
            warnings.append(Problem("warning", name, "odd values", f"{path}: {name} runs from {span}; check its unit"))
    return warnings


def _table_warnings(table: Table) -> list[Problem]:
    warnings = []
    for name, unit in table.units.items():
        values = table.numbers(name, unit)
        if np.isinf(values).any():
            text = f"column {name!r} holds {np.isinf(values).sum()} infinite values; they are no measurements"
            warnings.append(Problem("warning", name, "infinite values", text))
        if not np.isfinite(values).any():
            warnings.append(Problem("warning", name, "empty column", f"column {name!r} holds no value at all"))
    if table.num_units < len(table):
        text = f"{len(table)} rows belong to {table.num_units} {table.privacy_unit}s: privacy counts those, not rows"
        warnings.append(Problem("warning", table.privacy_key, "shared privacy units", text))
    return warnings


def _describe_cube(cube: Cube, path: Path) -> Description:
    sizes = {name: len(values) for name, values in cube.axes.items()}
    variables = []
    for name in [*cube.axes, *cube.fields]:
        variable = AXES.get(name) or FIELDS[name]
        shape = tuple((dim, sizes[dim]) for dim in variable.dims)
        variables.append(
            VariableDescription(name, variable.unit.name, variable.standard_name, shape, name in cube.derived)
        )
    return Description(
        path=path,
        kind="cube",
        fingerprint=cube.fingerprint,
        privacy_unit=cube.attributes.get("privacy_unit", "world"),
        num_units=1,
        num_bytes=_bytes(path),
        attributes=tuple(sorted(cube.attributes.items())),
        planet=tuple(asdict(cube.planet).items()),
        variables=tuple(variables),
    )


def _describe_table(table: Table, path: Path) -> Description:
    variables = tuple(
        VariableDescription(
            name, table.units.get(name, ""), "number" if name in table.units else "text", (("row", len(table)),)
        )
        for name in table.columns
    )
    return Description(
        path=path,
        kind="table",
        fingerprint=table.fingerprint,
        privacy_unit=table.privacy_unit,
        num_units=table.num_units,
        num_bytes=_bytes(path),
        attributes=tuple(sorted(table.attributes.items())),
        planet=(),
        variables=variables,
    )


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _stats(name: str, unit: str, values: NDArray[np.float64], weights: NDArray[np.float64]) -> VariableStats:
    finite = np.isfinite(values)
    count = int(finite.sum())
    if count == 0:
        return VariableStats(name, unit, 0, values.size, *[float("nan")] * 4)
    weight = np.broadcast_to(weights, values.shape)[finite]
    kept = values[finite]
    mean = float(np.average(kept, weights=weight))
    std = float(np.sqrt(np.average((kept - mean) ** 2, weights=weight)))
    return VariableStats(name, unit, count, values.size - count, float(kept.min()), mean, std, float(kept.max()))
