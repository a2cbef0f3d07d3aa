"""Cubes on disk: roundtrip, units, and every way in which a file can be wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from astrofed.client.data.cube import Cube, read_cube, write_cube
from astrofed.client.data.mistakes import (
    CubeCorrupt,
    CubeExists,
    CubeMissing,
    DataMistake,
    MissingVariable,
    NotFinite,
    PlanetIncomplete,
    WrongDimensions,
    WrongUnits,
)
from astrofed.shared.errors import UserMistake
from astrofed.simulations.synthetic import synthetic_world


@pytest.fixture(scope="module")
def cube() -> Cube:
    return synthetic_world(7, lev=4, lat=8, lon=12, climate_time=3)


@pytest.fixture(scope="module")
def written(cube: Cube, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cubes") / "world.zarr"
    write_cube(cube, path)
    return path


@pytest.fixture
def path(written: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(written, tmp_path / "spoilt.zarr"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a zarr.json in place."""
    file = path / "zarr.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def chunk(path: Path, name: str) -> Path:
    (file,) = (path / name).glob("c.*")
    return file


def test_roundtrip_keeps_everything(cube: Cube, written: Path) -> None:
    back = read_cube(written)
    assert back.fingerprint == cube.fingerprint
    assert back.planet == cube.planet
    assert back.attributes == cube.attributes
    assert back.derived == cube.derived == {"zg"}
    for name, values in cube.fields.items():
        assert back.fields[name].dtype == np.float32
        np.testing.assert_array_equal(back.fields[name], values)
    for name, values in cube.axes.items():
        np.testing.assert_array_equal(back.axes[name], values)


@settings(deadline=None, derandomize=True, max_examples=8)
@given(seed=st.integers(0, 2**32), lev=st.integers(2, 4), lat=st.integers(4, 7), lon=st.integers(4, 7))
def test_any_world_roundtrips(
    tmp_path_factory: pytest.TempPathFactory, seed: int, lev: int, lat: int, lon: int
) -> None:
    cube = synthetic_world(seed, lev=lev, lat=lat, lon=lon, climate_time=2, geological_time=1)
    target = tmp_path_factory.mktemp("any") / "world.zarr"
    write_cube(cube, target)
    assert read_cube(target).fingerprint == cube.fingerprint


def test_storage_is_one_shard_with_one_inner_chunk_a_sample(written: Path) -> None:
    ta = zarr.open_group(written, mode="r")["ta"]
    assert isinstance(ta, zarr.Array)
    assert ta.metadata.zarr_format == 3
    assert ta.shards == ta.shape == (2, 3, 4, 8, 12)
    assert ta.chunks == (1, 1, 4, 8, 12)
    assert ta.attrs["units"] == "K"


def test_fingerprint_ignores_path_and_chunking(cube: Cube, path: Path) -> None:
    shutil.rmtree(path / "ta")
    array = zarr.open_group(path, mode="r+").create_array(
        "ta",
        shape=cube.fields["ta"].shape,
        dtype="f4",
        chunks=(2, 1, 2, 8, 5),
        dimension_names=("geological_time", "climate_time", "lev", "lat", "lon"),
        attributes={"units": "K"},
    )
    array[...] = cube.fields["ta"]
    assert read_cube(path).fingerprint == cube.fingerprint


def test_declared_units_are_converted(cube: Cube, path: Path) -> None:
    group = zarr.open_group(path, mode="r+")
    for name, factor, unit in (("ps", 0.01, "hPa"), ("hus", 1e3, "g/kg")):
        array = group[name]
        assert isinstance(array, zarr.Array)
        array[...] = cube.fields[name] * np.float32(factor)
        array.attrs["units"] = unit
    back = read_cube(path)
    np.testing.assert_allclose(back.fields["ps"], cube.fields["ps"], rtol=3e-7)
    np.testing.assert_allclose(back.fields["hus"], cube.fields["hus"], rtol=3e-7)


def test_nothing_is_overwritten(cube: Cube, path: Path) -> None:
    with pytest.raises(CubeExists, match=r"spoilt\.zarr exists already"):
        write_cube(cube, path)


def test_a_failed_write_leaves_nothing(cube: Cube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("astrofed.client.data.cube._write_variable", full)
    with pytest.raises(OSError, match="No space left"):
        write_cube(cube, tmp_path / "new.zarr")
    assert list(tmp_path.iterdir()) == []


def test_no_folder_no_group_old_group(tmp_path: Path) -> None:
    with pytest.raises(CubeMissing, match="is no folder"):
        read_cube(tmp_path / "nothing.zarr")
    with pytest.raises(CubeMissing, match=r"holds no zarr\.json"):
        read_cube(tmp_path)
    (tmp_path / ".zgroup").write_text("{}")
    with pytest.raises(CubeMissing, match="Zarr v2"):
        read_cube(tmp_path)


@pytest.mark.parametrize("text", ["", "{", '{"zarr_format": 3, "node_type": "array"}', "[1]"])
def test_damaged_group_metadata(path: Path, text: str) -> None:
    (path / "zarr.json").write_text(text)
    with pytest.raises(CubeCorrupt, match=r"zarr\.json"):
        read_cube(path)


def test_damaged_array_metadata(path: Path) -> None:
    (path / "ta" / "zarr.json").write_text("{")
    with pytest.raises(DataMistake, match="ta"):
        read_cube(path)


def test_a_missing_shard_is_not_filled_silently(path: Path) -> None:
    file = chunk(path, "ua")
    file.unlink()
    with pytest.raises(CubeCorrupt, match=r"ua.*absent"):
        read_cube(path)


@pytest.mark.parametrize("position", [0, 40, 500, -4, -40])
def test_one_flipped_byte_anywhere_is_found(path: Path, position: int) -> None:
    file = chunk(path, "ta")
    content = bytearray(file.read_bytes())
    content[position] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(CubeCorrupt, match=r"ta: a chunk of ta is damaged"):
        read_cube(path)


@pytest.mark.parametrize("keep", [0, 3, 1000])
def test_a_truncated_shard_is_found(path: Path, keep: int) -> None:
    file = chunk(path, "ta")
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CubeCorrupt, match=r"chunk (\(.*\) )?of ta is "):
        read_cube(path)


def test_an_inner_chunk_that_was_never_written_is_found(path: Path, cube: Cube) -> None:
    shutil.rmtree(path / "va")
    array = zarr.open_group(path, mode="r+").create_array(
        "va",
        shape=cube.fields["va"].shape,
        dtype="f4",
        chunks=(1, 1, 4, 8, 12),
        shards=cube.fields["va"].shape,
        fill_value=float("nan"),
        dimension_names=("geological_time", "climate_time", "lev", "lat", "lon"),
        attributes={"units": "m s-1"},
    )
    array[0] = cube.fields["va"][0]
    with pytest.raises(NotFinite, match="va holds"):
        read_cube(path)


def test_a_missing_variable_says_its_nearest(path: Path) -> None:
    (path / "ps").rename(path / "psl")
    with pytest.raises(MissingVariable, match=r"ps .*Pa.* is missing; is it 'psl'"):
        read_cube(path)


def test_a_missing_coordinate(path: Path) -> None:
    shutil.rmtree(path / "pco2")
    with pytest.raises(MissingVariable, match="pco2"):
        read_cube(path)


def test_wrong_order_of_dimensions(path: Path) -> None:
    edit(path / "ta", lambda m: m["dimension_names"].reverse())
    with pytest.raises(WrongDimensions, match=r"ta has the dimensions \[lon, lat, lev.*\[geological_time, clim"):
        read_cube(path)


def test_no_dimension_names(path: Path) -> None:
    edit(path / "ta", lambda m: m.pop("dimension_names"))
    with pytest.raises(WrongDimensions, match=r"ta has the dimensions \[\]"):
        read_cube(path)


@pytest.mark.parametrize("unit", ["K", "atm", None])
def test_wrong_or_no_units(path: Path, unit: str | None) -> None:
    edit(path / "ps", lambda m: m["attributes"].pop("units") if unit is None else m["attributes"].update(units=unit))
    with pytest.raises(WrongUnits, match=r"ps declares .*one of: Pa, hPa"):
        read_cube(path)


@pytest.mark.parametrize("name", ["gravity_m_s2", "radius_m", "name"])
def test_a_missing_planet_constant(path: Path, name: str) -> None:
    edit(path, lambda m: m["attributes"]["planet"].pop(name))
    with pytest.raises(PlanetIncomplete, match=rf"planet\.{name} is None"):
        read_cube(path)


@pytest.mark.parametrize(("value", "words"), [(-9.8, "gravity_m_s2 is -9.8"), ("9.8", "gravity_m_s2 is '9.8'")])
def test_an_impossible_planet_constant(path: Path, value: object, words: str) -> None:
    edit(path, lambda m: m["attributes"]["planet"].update(gravity_m_s2=value))
    with pytest.raises(PlanetIncomplete, match=words):
        read_cube(path)


def test_no_planet(path: Path) -> None:
    edit(path, lambda m: m["attributes"].pop("planet"))
    with pytest.raises(PlanetIncomplete, match="no `planet` attribute"):
        read_cube(path)


def test_each_mistake_is_the_users_and_has_its_own_class() -> None:
    classes = DataMistake.__subclasses__()
    assert issubclass(DataMistake, UserMistake)
    assert len(classes) == len({cls.__name__ for cls in classes}) >= 15
