"""What `check`, `describe` and `stats` say about cubes and tables."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from astrofed.client.data.check import check_dataset, dataset_stats, describe_dataset
from astrofed.client.data.cube import Cube, build_cube, write_cube
from astrofed.client.data.mistakes import DataMistake, UnknownDatasetKind
from astrofed.client.data.table import build_table, write_table
from astrofed.simulations.synthetic import synthetic_world


@pytest.fixture
def cube() -> Cube:
    return synthetic_world(5, lev=3, lat=6, lon=8, climate_time=2)


@pytest.fixture
def cube_path(cube: Cube, tmp_path: Path) -> Path:
    licensed = build_cube(
        cube.planet, cube.given, cube.axes, attributes={"privacy_unit": "world", "licence": "CC0-1.0"}
    )
    write_cube(licensed, tmp_path / "w.zarr")
    return tmp_path / "w.zarr"


@pytest.fixture
def table_path(tmp_path: Path) -> Path:
    columns = {"name": np.array(["a", "a", "b"]), "x": np.array([1.0, np.inf, 3.0]), "y": np.full(3, np.nan)}
    write_table(build_table(columns, {"x": "K", "y": "1"}, "planet", "name"), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def test_a_good_cube_has_no_problems(cube_path: Path) -> None:
    report = check_dataset(cube_path)
    assert report.ok and report.kind == "cube" and report.problems == ()
    assert report.fingerprint == describe_dataset(cube_path).fingerprint


def test_all_problems_are_found_at_once(cube_path: Path) -> None:
    shutil.rmtree(cube_path / "ps")
    next((cube_path / "ua").glob("c.*")).unlink()
    for name, key, value in (("ta", "dimension_names", ["lon"] * 5), ("hus", "attributes", {"units": "m"})):
        file = cube_path / name / "zarr.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    group = cube_path / "zarr.json"
    content = json.loads(group.read_text())
    del content["attributes"]["planet"]["radius_m"], content["attributes"]["licence"]
    group.write_text(json.dumps(content))
    shutil.copytree(cube_path / "va", cube_path / "vas")
    report = check_dataset(cube_path)
    assert not report.ok and report.fingerprint is None
    assert {(p.severity, p.subject, p.mistake) for p in report.problems} == {
        ("error", "planet", "PlanetIncomplete"),
        ("error", "ps", "MissingVariable"),
        ("error", "ua", "CubeCorrupt"),
        ("error", "ta", "WrongDimensions"),
        ("error", "hus", "WrongUnits"),
        ("warning", "vas", "unknown variable"),
        ("warning", "dataset", "no attribute"),
    }
    assert all(str(cube_path) in p.message for p in report.problems)


def test_missing_height_and_odd_values_are_warnings(cube: Cube, tmp_path: Path) -> None:
    fields = {name: values for name, values in cube.given.items() if name != "phis"}
    fields["ps"] = fields["ps"] / 1e4  # a plain mistake of units
    write_cube(build_cube(cube.planet, fields, cube.axes, attributes=cube.attributes), tmp_path / "w.zarr")
    report = check_dataset(tmp_path / "w.zarr")
    assert report.ok
    assert [p.mistake for p in report.problems] == ["no height", "odd values"]


def test_a_broken_group_is_one_problem(cube_path: Path) -> None:
    (cube_path / "zarr.json").write_text("{")
    (problem,) = check_dataset(cube_path).problems
    assert problem.mistake == "CubeCorrupt"


def test_table_warnings(table_path: Path) -> None:
    report = check_dataset(table_path)
    assert report.ok and report.kind == "table"
    assert {(p.subject, p.mistake) for p in report.problems} == {
        ("x", "infinite values"),
        ("y", "empty column"),
        ("name", "shared privacy units"),
    }


def test_a_broken_table_is_one_problem(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text("no")
    report = check_dataset(tmp_path / "t.parquet")
    assert not report.ok and report.problems[0].mistake == "TableCorrupt"


def test_nothing_there(tmp_path: Path) -> None:
    for look in (check_dataset, describe_dataset, dataset_stats):
        with pytest.raises(UnknownDatasetKind, match="does not exist"):
            look(tmp_path / "nothing")


def test_description_of_a_cube(cube: Cube, cube_path: Path) -> None:
    told = describe_dataset(cube_path)
    assert (told.kind, told.privacy_unit, told.num_units) == ("cube", "world", 1)
    assert dict(told.planet)["gravity_m_s2"] == cube.planet.gravity_m_s2
    assert told.num_bytes == sum(f.stat().st_size for f in cube_path.rglob("*") if f.is_file())
    by_name = {v.name: v for v in told.variables}
    assert by_name["zg"].derived and not by_name["ta"].derived
    assert by_name["ps"].shape == (("geological_time", 2), ("climate_time", 2), ("lat", 6), ("lon", 8))
    assert by_name["flux"].unit == "W m-2"


def test_description_of_a_table(table_path: Path) -> None:
    told = describe_dataset(table_path)
    assert (told.kind, told.privacy_unit, told.num_units, told.planet) == ("table", "planet", 2, ())
    assert {v.name: (v.unit, v.meaning) for v in told.variables} == {
        "name": ("", "text"),
        "x": ("K", "number"),
        "y": ("1", "number"),
    }


def test_stats_of_a_cube_are_area_weighted(cube: Cube, cube_path: Path) -> None:
    (ts,) = (s for s in dataset_stats(cube_path) if s.name == "ts")
    values = cube.fields["ts"].astype(np.float64)
    weights = np.broadcast_to(np.cos(np.deg2rad(cube.lat_deg))[:, None], values.shape)
    assert ts.mean == pytest.approx(float(np.average(values, weights=weights)), rel=1e-9)
    assert (ts.minimum, ts.maximum, ts.count, ts.absent) == (values.min(), values.max(), values.size, 0)


def test_stats_of_a_table_leave_out_what_is_absent(table_path: Path) -> None:
    x, y = dataset_stats(table_path)
    assert (x.mean, x.std, x.count, x.absent, x.unit) == (2.0, 1.0, 2, 1, "K")
    assert y.count == 0 and np.isnan(y.mean)


def test_stats_of_broken_data_raise(cube_path: Path) -> None:
    shutil.rmtree(cube_path / "ta")
    with pytest.raises(DataMistake, match="ta"):
        dataset_stats(cube_path)
