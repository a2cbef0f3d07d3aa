"""The conversion of GCM output: names, units, rounding, and refusal of what it wasn't written for."""

import json
from pathlib import Path

import numpy as np
import pytest

xarray = pytest.importorskip("xarray")
pytest.importorskip("h5py")

from astrofed.client.data.contract import FIELDS, SURFACE, VOLUME  # noqa: E402
from astrofed.client.data.cube import read_cube  # noqa: E402
from astrofed.simulations import import_worlds  # noqa: E402

SCALES = {"ta": 280.0, "ps": 1000.0, "ts": 290.0, "hus": 0.01, "wap": 0.001, "pr": 1e-7, "evap": 1e-7}
SIZES = {"geological_time": 2, "climate_time": 3, "lev": 3, "lat": 4, "lon": 5}


def source(folder: Path, wap_unit: str = "Pa s-1") -> Path:
    """A tiny file in the form of the GCM's output."""
    rng = np.random.default_rng(0)
    data = {}
    for name in [*import_worlds.STEPS, "hus"]:
        dims = VOLUME if FIELDS[name].dims == VOLUME else SURFACE
        scale = {"ta": 280.0, "ps": 1000.0, "ts": 290.0, "hus": 0.01, "wap": 0.001, "pr": 1e-7, "evap": 1e-7}.get(
            name, 0.5
        )
        values = scale * rng.uniform(0.9, 1.1, [SIZES[dim] for dim in dims])
        unit = import_worlds.EXPECTED_UNITS.get(name, FIELDS[name].unit.name)
        unit = wap_unit if name == "wap" else unit
        data[import_worlds.NAMES.get(name, name)] = (dims, values.astype(np.float32), {"units": unit})
    data["flux"] = (("geological_time",), np.array([1300.0, 1400.0], np.float32), {"units": "W m-2"})
    data["pCO2_bar"] = (("geological_time",), np.array([3.6e-4, 3e-3], np.float32), {"units": "bar"})
    axes = {
        "geological_time": [0.0, 1.0],
        "climate_time": [0, 1, 2],
        "lev": [0.1, 0.5, 0.9],
        "lat": [60.0, 20, -20, -60],
        "lon": [0.0, 72, 144, 216, 288],
    }
    planet = {
        "name": "tiny",
        "startemp": 5200.0,
        "rotationperiod": 2.0,
        "radius": 1.4,
        "gravity": 14.5,
        "obliquity": 10.0,
        "eccentricity": 0.1,
        "mldepth": 10.0,
    }
    dataset = xarray.Dataset(data, axes, {"planet": json.dumps(planet)})
    dataset.to_netcdf(folder / "exoplasim_tiny.nc", engine="h5netcdf")
    return folder


def test_names_units_and_constants(tmp_path: Path) -> None:
    cube = import_worlds.convert(source(tmp_path), "tiny")
    with xarray.open_dataset(tmp_path / "exoplasim_tiny.nc", engine="h5netcdf") as data:
        raw = {name: data[name].to_numpy() for name in ("ps", "wap", "pr", "grnz", "hus", "ta")}
    np.testing.assert_allclose(cube.fields["ps"], raw["ps"] * 100, atol=8.01)
    np.testing.assert_allclose(cube.fields["wap"], raw["wap"] * 100, atol=2**-10 + 1e-6)
    np.testing.assert_allclose(cube.fields["pr"], raw["pr"] * 1000, atol=2**-22 + 1e-9)
    np.testing.assert_allclose(cube.fields["ta"], raw["ta"], atol=0.1251)
    np.testing.assert_allclose(cube.fields["hus"], raw["hus"], rtol=2**-6)
    assert "zg" in cube.derived
    assert cube.pco2_pa.tolist() == [36.0, 300.0]
    planet = cube.planet
    assert (planet.rotation_period_s, planet.gravity_m_s2, planet.eccentricity) == (172800.0, 14.5, 0.1)
    assert planet.radius_m == pytest.approx(1.4 * 6.371e6)
    assert planet.gas_constant / planet.heat_capacity_j_kg_k == pytest.approx(0.286)


def test_rounding_twice_changes_nothing() -> None:
    values = np.random.default_rng(1).normal(size=1000) * 10
    for name in (*import_worlds.STEPS, "hus"):
        once = import_worlds._rounded(name, np.abs(values))
        np.testing.assert_array_equal(import_worlds._rounded(name, once.astype(np.float64)), once)


def test_a_source_whose_label_was_mended_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wap is in 'hPa s-1', this script expects 'Pa s-1'"):
        import_worlds.convert(source(tmp_path, wap_unit="hPa s-1"), "tiny")


def test_the_command_writes_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_worlds, "WORLDS", ("tiny",))
    assert import_worlds.main([str(source(tmp_path)), str(tmp_path / "out")]) == 0
    name, fingerprint, size = capsys.readouterr().out.split()
    assert name == "tiny" and int(size) > 0
    assert read_cube(tmp_path / "out" / "tiny.zarr").fingerprint == fingerprint
