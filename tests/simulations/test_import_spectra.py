"""The conversion of emission spectra: values, rounding, and refusal of what it wasn't written for."""

import shutil
from pathlib import Path

import numpy as np
import pytest

xarray = pytest.importorskip("xarray")
pytest.importorskip("h5py")

from astrofed.client.data.cube import read_cube  # noqa: E402
from astrofed.client.data.emission import read_emission  # noqa: E402
from astrofed.simulations.bundled import resolve_bundled  # noqa: E402
from astrofed.simulations.import_spectra import add_spectra, rounded  # noqa: E402


def source(path: Path, latitudes: "np.ndarray[tuple[int], np.dtype[np.float64]]", unit: str = "W m-2 um-1") -> Path:
    rng = np.random.default_rng(0)
    values = rng.uniform(0.1, 30, (2, 12, len(latitudes), 5)).astype(np.float32)
    dims = ("geological_time", "climate_time", "lat", "wavelength")
    data = xarray.Dataset(
        {"emission_flux": (dims, values, {"units": unit})},
        coords={"lat": latitudes, "wavelength": np.array([5.0, 8, 10, 15, 20])},
    )
    data.to_netcdf(path, engine="h5netcdf")
    return path


@pytest.fixture
def world(tmp_path: Path) -> Path:
    shutil.copytree(resolve_bundled("worlds/w1_continents"), tmp_path / "world.zarr")
    return tmp_path / "world.zarr"


def test_what_is_added_is_read_and_the_fingerprint_stays(world: Path, tmp_path: Path) -> None:
    before = read_cube(world)
    file = source(tmp_path / "spectra.nc", before.lat_deg)
    for _ in range(2):  # again: what is there is replaced
        add_spectra(file, world)
    found = read_emission(world, read_cube(world))
    assert found is not None and read_cube(world).fingerprint == before.fingerprint
    with xarray.open_dataset(file, engine="h5netcdf") as data:
        np.testing.assert_allclose(found.flux, data["emission_flux"].to_numpy(), rtol=2**-7)


def test_another_file_is_refused(world: Path, tmp_path: Path) -> None:
    latitudes = read_cube(world).lat_deg
    with pytest.raises(ValueError, match="K m-2"):
        add_spectra(source(tmp_path / "a.nc", latitudes, unit="K m-2"), world)
    with pytest.raises(ValueError, match="latitudes"):
        add_spectra(source(tmp_path / "b.nc", latitudes + 1), world)
    assert read_emission(world, read_cube(world)) is None


def test_rounding_is_relative_and_darkness_is_zero() -> None:
    values = np.array([1e-33, 1.2345, 30.01])
    found = rounded(values)
    assert found[0] == 0 and np.abs(found[1:] / values[1:] - 1).max() <= 2**-8
