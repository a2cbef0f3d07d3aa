"""Climate cubes as Zarr v3 groups: one array a variable, `dimension_names`, `units`, planet constants in the group.

One shard an array, one inner chunk a sample (one geological_time, one climate_time, all lev, lat and lon), each with a
CRC32C. Zarr itself returns fill values for chunks that are absent; here an absent chunk is an error.
"""

import difflib
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from astrofed.client.data.contract import AXES, FIELDS, Variable, conversion
from astrofed.client.data.mistakes import (
    CubeCorrupt,
    CubeExists,
    CubeMissing,
    MissingVariable,
    PlanetIncomplete,
    WrongDimensions,
)
from astrofed.client.data.world import Cube, build_cube
from astrofed.shared.planet import Planet

if TYPE_CHECKING:
    import zarr

__all__ = ["Cube", "build_cube", "read_cube", "write_cube"]

FORMAT = "astrofed-cube"
_STATIC = ("phis", "lsm")  # the same in every sample: one chunk holds them all


def read_cube(path: Path) -> Cube:
    """Read a cube, convert declared units to SI, derive zg where it is absent and phis is there.

    Variables that the contract doesn't know are left out.

    Raises:
        CubeMissing: no Zarr v3 group there.
        CubeCorrupt: metadata or a chunk is damaged, or a chunk is absent.
        PlanetIncomplete, MissingVariable, WrongDimensions, WrongUnits, WrongCoordinates, NotFinite, Unphysical: what
            the content lacks; the message names the path, the variable and the mend.
    """
    group = open_group(path)
    planet = read_planet(group.attrs.asdict(), path)
    names = variable_names(path)
    for variable in AXES.values():
        _require(variable, names, path)
    for variable in FIELDS.values():
        if variable.required:
            _require(variable, names, path)
    axes = {name: read_variable(group, variable, path) for name, variable in AXES.items()}
    arrays = {name: read_variable(group, FIELDS[name], path) for name in names if name in FIELDS}
    attributes = {
        key: value
        for key, value in group.attrs.asdict().items()
        if isinstance(value, str) and key not in ("format", "planet")
    }
    return build_cube(planet, arrays, axes, attributes=attributes, where=str(path))


def open_group(path: Path) -> "zarr.Group":
    """Open a Zarr v3 group for reading.

    Raises:
        CubeMissing: nothing there, or no group of Zarr v3.
        CubeCorrupt: its metadata can't be read.
    """
    import zarr
    from zarr.errors import BaseZarrError

    if not path.is_dir():
        raise CubeMissing(f"{path} is no folder; give the path of a Zarr v3 group (a folder that holds zarr.json)")
    if not (path / "zarr.json").is_file():
        old = (path / ".zgroup").exists() or (path / ".zmetadata").exists()
        mend = "it is Zarr v2: convert it to Zarr v3" if old else "it holds no zarr.json: give a Zarr v3 group"
        raise CubeMissing(f"{path} is no Zarr v3 group; {mend}")
    try:
        return zarr.open_group(path, mode="r", zarr_format=3, use_consolidated=False)
    except (BaseZarrError, ValueError, KeyError, TypeError, OSError) as error:
        raise CubeCorrupt(f"{path / 'zarr.json'} can't be read as the metadata of a Zarr v3 group: {error}") from error


def variable_names(path: Path) -> list[str]:
    """Return the names of what lies in a group, sorted, without reading it (its metadata may be damaged)."""
    return sorted(folder.name for folder in path.iterdir() if (folder / "zarr.json").is_file())


def read_planet(attributes: Mapping[str, Any], path: Path) -> Planet:
    """Return the planet from the group's `planet` attribute.

    Raises:
        PlanetIncomplete: absent, a constant missing, or not a number in its range.
    """
    given = attributes.get("planet")
    if not isinstance(given, Mapping):
        names = ", ".join(field.name for field in fields(Planet))
        raise PlanetIncomplete(f"{path}: the group has no `planet` attribute; give an object with {names}")
    values: dict[str, Any] = {}
    for field in fields(Planet):
        value = given.get(field.name, None if field.default is MISSING else field.default)
        if not isinstance(value, str if field.name == "name" else int | float) or isinstance(value, bool):
            raise PlanetIncomplete(f"{path}: planet.{field.name} is {value!r}; give its value in SI units")
        values[field.name] = value if field.name == "name" else float(value)
    try:
        return Planet(**values)
    except ValueError as error:
        raise PlanetIncomplete(f"{path}: {error}") from error


def read_variable(group: "zarr.Group", variable: Variable, path: Path) -> NDArray[np.float64]:
    """Return one variable in SI units, float64, of the shape that is stored (dims checked by name and order).

    Raises:
        WrongDimensions, WrongUnits, CubeCorrupt: see `read_cube`.
    """
    import zarr
    from zarr.errors import BaseZarrError

    name = variable.name
    try:
        array = group[name]
    except (BaseZarrError, ValueError, KeyError, TypeError, OSError) as error:
        raise CubeCorrupt(f"{path / name}: the metadata of {name} can't be read: {error}") from error
    if not isinstance(array, zarr.Array):
        raise WrongDimensions(f"{path}: {name} is a group; it must be an array [{', '.join(variable.dims)}]")
    dims = tuple(str(dim) for dim in array.metadata.dimension_names or ())  # type: ignore[union-attr]
    if dims != variable.dims:
        raise WrongDimensions(
            f"{path}: {name} has the dimensions [{', '.join(dims)}]; in this order: [{', '.join(variable.dims)}]"
        )
    if array.dtype.kind not in "fiu":
        raise WrongDimensions(f"{path}: {name} holds {array.dtype}, not numbers")
    factor, offset = conversion(variable, array.attrs.asdict().get("units"), str(path))
    _refuse_absent_chunks(array, path / name, name)
    try:
        values = np.asarray(array[...], dtype=np.float64)
    except (BaseZarrError, ValueError, RuntimeError, TypeError, KeyError, IndexError, OSError) as error:
        raise CubeCorrupt(
            f"{path / name}: a chunk of {name} is damaged ({type(error).__name__}: {error}); copy the cube anew"
        ) from error
    return np.asarray(values * factor + offset, dtype=np.float64)


def _refuse_absent_chunks(array: "zarr.Array[Any]", folder: Path, name: str) -> None:
    outer = array.shards or array.chunks
    grid = tuple(-(-size // step) for size, step in zip(array.shape, outer, strict=True))
    encode = array.metadata.encode_chunk_key
    for index in np.ndindex(*grid):
        file = folder / encode(index)
        if not file.is_file() or file.stat().st_size == 0:
            raise CubeCorrupt(
                f"{file} is absent or empty: chunk {index} of {name} is not there; copy the cube anew "
                "(or write it with array.write_empty_chunks, if it was left out for being empty)"
            )


def _require(variable: Variable, names: list[str], path: Path) -> None:
    if variable.name not in names:
        near = difflib.get_close_matches(variable.name, names, n=1, cutoff=0.5)
        raise MissingVariable(
            f"{path}: {variable.name} ({variable.standard_name}, {variable.unit.name}) is missing"
            + (f"; is it {near[0]!r}? Rename it." if near else f"; it has: {', '.join(sorted(names)) or 'nothing'}")
        )


def write_cube(cube: Cube, path: Path) -> None:
    """Write the given fields (not the derived ones) in SI units; the folder appears at once, when it is complete.

    Raises:
        CubeExists: something is there already; nothing is overwritten.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    if path.exists() or path.is_symlink():
        raise CubeExists(f"{path} exists already; remove it or write to another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f".{path.name}.{secrets.token_hex(4)}.unfinished"
    try:
        _write(cube, unfinished)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(cube: Cube, folder: Path) -> None:
    import zarr

    attributes = {**cube.attributes, "format": FORMAT, "planet": asdict(cube.planet)}
    group = zarr.create_group(folder, zarr_format=3, attributes=attributes)
    with zarr.config.set({"array.write_empty_chunks": True}):  # an absent chunk always means damage
        for name, axis in cube.axes.items():
            _write_variable(group, AXES[name], axis)
        for name, values in cube.given.items():
            _write_variable(group, FIELDS[name], values)


def _write_variable(group: "zarr.Group", variable: Variable, values: NDArray[np.floating]) -> None:
    from zarr.codecs import BloscCodec, Crc32cCodec

    chunks = values.shape if values.ndim == 1 or variable.name in _STATIC else (1, 1, *values.shape[2:])
    array = group.create_array(
        variable.name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=chunks,
        shards=values.shape,
        compressors=[BloscCodec(cname="zstd", clevel=9, shuffle="shuffle", typesize=values.itemsize), Crc32cCodec()],
        fill_value=float("nan"),
        dimension_names=variable.dims,
        chunk_key_encoding={"name": "default", "separator": "."},  # one file an array, not six nested folders
        attributes={"units": variable.unit.name, "standard_name": variable.standard_name},
    )
    array[...] = values
