"""The cube in memory: what it refuses, what it derives, what its fingerprint depends on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from astrofed.client.data.cube import Cube, build_cube
from astrofed.client.data.mistakes import (
    MissingVariable,
    NotFinite,
    Unphysical,
    WrongCoordinates,
    WrongDimensions,
)
from astrofed.simulations.synthetic import synthetic_world


@pytest.fixture(scope="module")
def cube() -> Cube:
    return synthetic_world(3, lev=4, lat=8, lon=12, climate_time=3)


def rebuilt(cube: Cube, fields: Mapping[str, Any] | None = None, axes: Mapping[str, Any] | None = None) -> Cube:
    """The same cube with some fields or axes replaced; None removes one."""
    all_fields = {k: v for k, v in {**cube.given, **(fields or {})}.items() if v is not None}
    all_axes = {k: v for k, v in {**cube.axes, **(axes or {})}.items() if v is not None}
    return build_cube(cube.planet, all_fields, all_axes, attributes=cube.attributes, where="test cube")


def test_pressure_is_sigma_times_surface_pressure(cube: Cube) -> None:
    assert cube.pressure.shape == cube.fields["ta"].shape
    np.testing.assert_allclose(cube.pressure[1, 2, 3], cube.lev[3] * cube.fields["ps"][1, 2], rtol=1e-6)


def test_height_is_derived_only_where_the_surface_is_known(cube: Cube) -> None:
    assert cube.derived == {"zg"}
    without = rebuilt(cube, {"phis": None})
    assert "zg" not in without.fields and not without.derived
    given = rebuilt(cube, {"zg": cube.fields["zg"]})
    assert not given.derived


def test_arrays_are_read_only(cube: Cube) -> None:
    with pytest.raises(ValueError, match="read-only"):
        cube.fields["ta"][0] = 0
    with pytest.raises(ValueError, match="read-only"):
        cube.lev[0] = 0


def test_fingerprint_is_of_content(cube: Cube) -> None:
    assert rebuilt(cube).fingerprint == cube.fingerprint
    fortran = {name: np.asfortranarray(values) for name, values in reversed(list(cube.given.items()))}
    assert rebuilt(cube, fortran).fingerprint == cube.fingerprint
    swapped = {"ta": cube.fields["ta"].astype(cube.fields["ta"].dtype.newbyteorder(">"))}
    assert rebuilt(cube, swapped).fingerprint == cube.fingerprint


def test_fingerprint_sees_each_change(cube: Cube) -> None:
    ta = cube.fields["ta"].copy()
    ta[0, 0, 0, 0, 0] += 0.001
    planet = dataclasses.replace(cube.planet, gravity_m_s2=9.81)
    others = [
        rebuilt(cube, {"ta": ta}),
        rebuilt(cube, {"sic": None}),
        rebuilt(cube, axes={"flux": cube.flux_w_m2 + 1}),
        build_cube(planet, cube.given, cube.axes, attributes=cube.attributes),
        build_cube(cube.planet, cube.given, cube.axes, attributes={**cube.attributes, "licence": "other"}),
    ]
    assert len({cube.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("axis", "values", "mistake", "words"),
    [
        ("lat", [90.0, 60, 61, 20, -20, -40, -60, -80], WrongCoordinates, "lat neither rises nor falls"),
        ("lat", [100.0, 60, 50, 20, -20, -40, -60, -80], WrongCoordinates, "lat runs from -80 to 100"),
        ("lev", [0.0, 0.3, 0.6, 0.9], WrongCoordinates, "lev .*sigma"),
        ("lev", [50.0, 300.0, 600.0, 900.0], WrongCoordinates, "lev runs from 50 to 900"),
        ("lon", list(np.linspace(0, 360, 12)), WrongCoordinates, "lon spans 360"),
        ("lon", [0.0, np.nan, *range(10)], NotFinite, "lon holds NaN"),
        ("flux", [1361.0], WrongDimensions, "flux has 1 values for 2"),
        ("flux", [1361.0, -3.0], Unphysical, "flux is 1361, -3"),
        ("lat", [[1.0]], WrongDimensions, "lat has the shape"),
        ("lat", [10.0, 5.0], WrongDimensions, "alb has the shape .*expected"),
        ("lon", None, MissingVariable, "coordinate lon is missing"),
    ],
)
def test_wrong_axes_are_refused(cube: Cube, axis: str, values: Any, mistake: type[Exception], words: str) -> None:
    with pytest.raises(mistake, match=words):
        rebuilt(cube, axes={axis: None if values is None else np.array(values)})


@pytest.mark.parametrize(
    ("name", "change", "mistake", "words"),
    [
        ("ps", lambda a: None, MissingVariable, "required variable ps"),
        ("ta", lambda a: a[..., 0], WrongDimensions, r"ta has the shape .*lev, lat, lon\]"),
        ("ta", lambda a: a * np.nan, NotFinite, "ta holds .* NaN"),
        ("ps", lambda a: -a, Unphysical, "ps falls to .* above 0"),
        ("tas", lambda a: np.zeros(3), MissingVariable, "tas is no variable of the contract"),
    ],
)
def test_wrong_fields_are_refused(cube: Cube, name: str, change: Any, mistake: type[Exception], words: str) -> None:
    with pytest.raises(mistake, match=words):
        rebuilt(cube, {name: change(cube.fields.get(name))})
