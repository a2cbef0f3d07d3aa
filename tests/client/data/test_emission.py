"""Emission spectra beside a cube: what is read, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from astrofed.client.data.check import check_dataset
from astrofed.client.data.cube import read_cube
from astrofed.client.data.emission import Emission, read_emission
from astrofed.client.data.mistakes import DataMistake
from astrofed.simulations.bundled import resolve_bundled

WORLD = resolve_bundled("worlds/earthlike")


def test_a_black_body_has_its_own_brightness_temperature() -> None:
    wavelength = np.linspace(4, 100, 30)
    for kelvin in (180.0, 288.0, 400.0):
        metres = wavelength * 1e-6
        flux = 2 * np.pi * 6.62607015e-34 * 2.99792458e8**2 / metres**5
        flux = flux / np.expm1(6.62607015e-34 * 2.99792458e8 / (metres * 1.380649e-23 * kelvin)) * 1e-6
        found = Emission(wavelength, flux[None, None, None]).brightness_temperature()
        np.testing.assert_allclose(found, kelvin, rtol=1e-9)
    assert (Emission(wavelength, np.zeros((1, 1, 1, 30))).brightness_temperature() == 0).all()


def test_the_shipped_spectrum_is_earths() -> None:
    cube = read_cube(WORLD)
    emission = read_emission(WORLD, cube)
    assert emission is not None and emission.flux.shape == (2, 12, 32, 60)
    area = np.cos(np.deg2rad(cube.lat_deg))
    edges = np.sqrt(emission.wavelength_um[1:] * emission.wavelength_um[:-1])
    inside = (emission.flux[..., 1:-1] * np.diff(edges)).sum(axis=-1)
    clear_sky = np.average(inside, axis=-1, weights=area).mean(axis=1)
    all_sky = np.average(-cube.fields["rlut"].mean(axis=-1), axis=-1, weights=area).mean(axis=1)
    assert (clear_sky > all_sky).all() and (clear_sky < 1.25 * all_sky).all()  # clouds hold some back
    band = (emission.wavelength_um > 10) & (emission.wavelength_um < 12)
    window = emission.brightness_temperature()[..., band].mean(axis=-1)
    surface = cube.fields["ts"].mean(axis=-1)
    assert np.corrcoef(window.ravel(), surface.ravel())[0, 1] > 0.97
    assert np.abs(window - surface).mean() < 8


def test_a_world_without_spectra_has_none() -> None:
    path = resolve_bundled("worlds/w1_continents")
    assert read_emission(path, read_cube(path)) is None


def _drop_wavelength(group: Any, path: Path) -> None:
    shutil.rmtree(path / "wavelength")


def _negative(group: Any, path: Path) -> None:
    group["emission"][0, 0, 0, 0] = -1.0


def _nan(group: Any, path: Path) -> None:
    group["emission"][0, 0, 0, 0] = np.nan


def _order(group: Any, path: Path) -> None:
    group["wavelength"][:] = np.asarray(group["wavelength"][:])[::-1]


def _units(group: Any, path: Path) -> None:
    group["emission"].attrs["units"] = "K"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_drop_wavelength, "wavelength"),
        (_negative, "can't be negative"),
        (_nan, "not finite"),
        (_order, "increasing"),
        (_units, "units"),
    ],
)
def test_what_is_wrong_is_said(spoil: Callable[[Any, Path], None], says: str, tmp_path: Path) -> None:
    path = tmp_path / "world.zarr"
    shutil.copytree(WORLD, path)
    spoil(zarr.open_group(path, mode="r+", use_consolidated=False), path)
    with pytest.raises(DataMistake, match=says):
        read_emission(path, read_cube(path))
    report = check_dataset(path)
    assert not report.ok and any(says in problem.message for problem in report.problems)
