"""Thermal wind of atmospheres in balance, on both hemispheres, over mountains, and where it can't be asked for."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from astrofed.shared.physics import TOLERANCES
from astrofed.shared.physics.grid import Grid
from astrofed.shared.physics.wind import geostrophic, thermal_wind_residual
from astrofed.shared.planet import Planet

TOLERANCE = TOLERANCES["thermal-wind"]
SHEAR = -8.0  # m/s by which a solid-body rotation grows with ln p: the faster the higher


def solid_body(grid: Grid, lon: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ta, ua, va, ps of u = U cos φ ln (p / 10⁵ Pa) in thermal wind balance: T = T₀(p) + a Ω U sin² φ / R.

    T₀ is an adiabat, so that T varies along sigma levels over mountains where it doesn't along pressure surfaces.
    """
    planet, phi = grid.planet, grid.latitude
    lam = torch.arange(lon, dtype=torch.float64) * 2 * math.pi / lon
    ps = 1e5 * (1 - 0.2 * phi.cos().square() * (1 + 0.3 * lam.cos()))
    log_p = (grid.lev * ps / 1e5).log()
    contrast = planet.radius_m * planet.angular_velocity * SHEAR / planet.gas_constant
    ta = 290.0 * (0.2 * log_p).exp() + contrast * phi.sin().square()
    ua = SHEAR * phi.cos() * log_p
    return ta, ua, torch.zeros_like(ua), ps


def waves(grid: Grid, lon: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ta, ua, va, ps of warm and cold air round every latitude circle, with the winds that balance them."""
    planet, phi = grid.planet, grid.latitude
    lam = torch.arange(lon, dtype=torch.float64) * 2 * math.pi / lon
    ps = torch.full((len(phi), lon), 1e5, dtype=torch.float64)
    log_p = grid.lev.log()
    ta = (250.0 + 10.0 * phi.cos().square() * (2 * lam).cos()).expand(len(grid.lev), -1, -1)
    factor = planet.gas_constant / (grid.coriolis * planet.radius_m) * log_p
    ua = factor * -20.0 * phi.cos() * phi.sin() * (2 * lam).cos()
    va = factor * 20.0 * phi.cos() * (2 * lam).sin()
    return ta, ua, va, ps


def size(grid: Grid, residual: Tensor) -> Tensor:
    """Root mean square poleward of 20° by component [2]."""
    outside = grid.latitude.abs() >= math.radians(20)
    return grid.global_mean(residual.square() * outside).mean(dim=-1).sqrt()


@pytest.mark.parametrize("rotation", [86164.0, 2e5])
def test_solid_body_rotation_over_mountains_is_in_balance(make_grid: Any, earth: Planet, rotation: float) -> None:
    planet = dataclasses.replace(earth, rotation_period_s=rotation)
    errors = []
    for n in (16, 32, 64):
        grid = make_grid(lev=n // 2, lat=n, lon=n, planet=planet)
        ta, ua, va, ps = solid_body(grid, n)
        errors.append(size(grid, thermal_wind_residual(ta, None, ua, va, ps, grid)).numpy())
    assert (np.log2(np.divide(errors[:-1], errors[1:])) > 1.8).all()
    assert errors[-1].max() < TOLERANCE / 50


def test_waves_are_in_balance_in_both_directions(make_grid: Any) -> None:
    errors = []
    for n in (8, 16, 32):
        grid = make_grid(lat=n, lon=2 * n)
        errors.append(float(size(grid, thermal_wind_residual(*with_dry_air(waves(grid, 2 * n)), grid)).max()))
    assert (np.log2(np.divide(errors[:-1], errors[1:])) > 4.5).all()
    assert errors[-1] < TOLERANCE / 1000


def with_dry_air(state: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, None, Tensor, Tensor, Tensor]:
    ta, ua, va, ps = state
    return ta, None, ua, va, ps


@pytest.mark.parametrize(
    "mistake",
    [
        "still air",
        "flat temperature",
        "winds of the other hemisphere",
        "northward wind the wrong way round",
        "levels the wrong way round",
        "shear with index instead of ln p",
        "warm poles",
    ],
)
def test_what_is_out_of_balance_is_seen(make_grid: Any, mistake: str) -> None:
    grid = make_grid(lev=12, lat=32, lon=64)
    ta, ua, va, ps = waves(grid, 64)
    balanced = size(grid, thermal_wind_residual(ta, None, ua, va, ps, grid))
    cases = {
        "still air": (ta, 0 * ua, 0 * va),
        "flat temperature": (0 * ta + 250.0, ua, va),
        "winds of the other hemisphere": (ta, -ua, -va),
        "northward wind the wrong way round": (ta, ua, -va),
        "levels the wrong way round": (ta, ua.flip(-3), va.flip(-3)),
        "shear with index instead of ln p": (ta, ua / 5, va / 5),
        "warm poles": (500.0 - ta, ua, va),
    }
    found = size(grid, thermal_wind_residual(cases[mistake][0], None, *cases[mistake][1:], ps, grid))
    assert found[1] > 30 * balanced[1]
    if mistake != "northward wind the wrong way round":
        assert found[0] > 30 * balanced[0]


def test_mountains_need_the_correction_to_pressure_surfaces(make_grid: Any) -> None:
    grid = make_grid(lev=16, lat=32, lon=32)
    ta, ua, va, ps = solid_body(grid, 32)
    right = size(grid, thermal_wind_residual(ta, None, ua, va, ps, grid))
    wrong = size(grid, thermal_wind_residual(ta, None, ua, va, torch.full_like(ps, 1e5), grid))
    assert (wrong > 30 * right).all()


def test_vapour_counts_in_the_temperature(make_grid: Any, earth: Planet) -> None:
    grid = make_grid(lat=32, lon=64)
    tv, ua, va, ps = waves(grid, 64)
    hus = 0.015 * grid.latitude.cos().expand_as(tv)
    ta = tv / (1 + earth.virtual_temperature_factor * hus)
    moist = thermal_wind_residual(ta, hus, ua, va, ps, grid)
    torch.testing.assert_close(moist, thermal_wind_residual(tv, None, ua, va, ps, grid))


def test_balance_is_asked_for_outside_the_tropics_above_the_friction_layer(make_grid: Any, earth: Planet) -> None:
    grid = Grid.of([0.1, 0.5, 0.8, 0.88, 0.98], make_grid().latitude.flatten().rad2deg(), np.arange(8) * 45.0, earth)
    calm = torch.zeros(5, 16, 8)
    asked = geostrophic(calm, calm, grid)
    outside = grid.latitude.abs().flatten() > math.radians(20)
    assert asked.shape == (4, 16, 8)
    assert asked[:3, outside].all()
    assert not asked[:, ~outside].any()
    assert not asked[3].any()


def test_slowly_rotating_worlds_are_mostly_masked(make_grid: Any, earth: Planet) -> None:
    """The same winds: balanced on Earth, in nobody's balance on Venus."""
    shares = []
    for days in (0.5, 1.0, 4.0, 243.0):
        planet = dataclasses.replace(earth, rotation_period_s=days * 86400.0)
        grid = make_grid(planet=planet)
        wind = 30.0 * (4 * grid.latitude).sin().square().expand(4, -1, 32)
        shares.append(float(geostrophic(wind, torch.zeros_like(wind), grid).double().mean()))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.4
    assert shares[-1] == 0.0
