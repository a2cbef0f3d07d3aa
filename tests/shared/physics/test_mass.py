"""Mass continuity of flows whose divergence is known, and the dry mass."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from astrofed.shared.physics import TOLERANCES
from astrofed.shared.physics.grid import Grid
from astrofed.shared.physics.mass import (
    column_continuity_residual,
    dry_mass,
    dry_mass_residual,
    mass_continuity_residual,
)

TOLERANCE = TOLERANCES["mass-continuity"]
SPEED = 30.0  # m/s
TILT = 0.7  # radians between the axes of the flow and of the grid: it crosses the poles


def longitude(grid: Grid) -> Tensor:
    count = round(1 / float((grid.area * 1.0).sum()))
    return torch.arange(count, dtype=torch.float64) * 2 * math.pi / count


def tilted_rotation(grid: Grid) -> tuple[Tensor, Tensor]:
    """ua and va [lat, lon] of an atmosphere that turns like a solid body about a tilted axis: free of divergence."""
    phi, lam = grid.latitude, longitude(grid)
    ua = SPEED * (phi.cos() * math.cos(TILT) + phi.sin() * lam.cos() * math.sin(TILT))
    return ua, (-SPEED * lam.sin() * math.sin(TILT)).expand_as(ua)


def mountains(grid: Grid) -> Tensor:
    """ps [lat, lon], Pa, between 0.7e5 and 1e5."""
    phi, lam = grid.latitude, longitude(grid)
    return 1e5 * (1 - 0.3 * phi.cos().square() * (0.5 + 0.5 * lam.cos()))


def size(grid: Grid, residual: Tensor) -> float:
    return float(grid.global_mean(residual.square()).mean().sqrt())


def order(errors: list[float]) -> float:
    return float(np.log2(np.divide(errors[:-1], errors[1:])).min())


def test_solid_body_rotation_about_any_axis_conserves_mass(make_grid: Any) -> None:
    errors = []
    for n in (16, 32, 64):
        grid = make_grid(lat=n, lon=2 * n)
        ua, va = (wind.expand(4, -1, -1) for wind in tilted_rotation(grid))
        ps = torch.full_like(ua[0], 1e5)
        errors.append(size(grid, mass_continuity_residual(ua, va, torch.zeros_like(ua), ps, grid)))
    assert order(errors) > 1.8
    assert errors[-1] < TOLERANCE / 50


def sheared_over_mountains(grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """ua, va, ps of a flow that turns as a solid body on every surface of pressure, the faster the higher."""
    ps = mountains(grid)
    height = 1 - (grid.lev * ps).log() / math.log(1e5)
    ua, va = tilted_rotation(grid)
    return ua * height, va * height, ps


def test_flow_along_pressure_surfaces_over_mountains_conserves_mass(make_grid: Any) -> None:
    """Divergence on sigma levels alone is wrong wherever surface pressure varies."""
    errors, uncorrected = [], []
    for n in (16, 32, 64):
        grid = make_grid(lev=n // 2, lat=n, lon=2 * n)
        ua, va, ps = sheared_over_mountains(grid)
        omega = torch.zeros_like(ua)
        errors.append(size(grid, mass_continuity_residual(ua, va, omega, ps, grid)))
        uncorrected.append(size(grid, mass_continuity_residual(ua, va, omega, torch.full_like(ps, 1e5), grid)))
    assert order(errors) > 1.8
    assert uncorrected[-1] > 20 * errors[-1]


def rising_branch(grid: Grid) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ua, va, wap, ps of an overturning v = V p cos φ / p₀; ∇·v = −2 V p sin φ / (a p₀), so ω = V p² sin φ / (a p₀)."""
    phi, ps = grid.latitude, mountains(grid)
    pressure = grid.lev * ps
    va = 5.0 * pressure / 1e5 * phi.cos()
    wap = 5.0 * pressure.square() / 1e5 * phi.sin() / grid.planet.radius_m
    return torch.zeros_like(va), va, wap, ps


def test_vertical_motion_closes_an_overturning_circulation(make_grid: Any) -> None:
    errors = []
    for n in (16, 32, 64):
        grid = make_grid(lev=n // 2, lat=n, lon=n)
        ua, va, wap, ps = rising_branch(grid)
        errors.append(size(grid, mass_continuity_residual(ua, va, wap, ps, grid)))
    assert order(errors) > 1.8
    assert errors[-1] < TOLERANCE / 50
    for wrong in (0 * wap, -wap, wap / 100, wap.flip(-3)):  # none, upward positive, hPa, levels the wrong way round
        assert size(grid, mass_continuity_residual(ua, va, wrong, ps, grid)) > 30 * errors[-1]


def test_wind_that_blows_apart_does_not_conserve_mass(make_grid: Any) -> None:
    grid = make_grid()
    phi = grid.latitude
    va = (20.0 * phi.cos() * phi.sin()).expand(4, -1, 32)
    ps = torch.full((16, 32), 1e5, dtype=torch.float64)
    residual = mass_continuity_residual(torch.zeros_like(va), va, torch.zeros_like(va), ps, grid)
    expected = 20.0 * (phi.cos().square() - 2 * phi.sin().square()) / grid.planet.radius_m / 1e-5
    torch.testing.assert_close(residual, expected.expand(3, 16, 32), rtol=0, atol=0.03)
    twice = dataclasses.replace(grid.planet, radius_m=2 * grid.planet.radius_m)
    larger = make_grid(planet=twice)  # the same wind on a planet of twice the radius
    torch.testing.assert_close(mass_continuity_residual(0 * va, va, 0 * va, ps, larger), residual / 2)


def test_without_vertical_motion_the_columns_are_balanced_as_a_whole(make_grid: Any) -> None:
    grid = make_grid(lev=20, lat=32, lon=64)
    ua, va = tilted_rotation(grid)
    ps = torch.full_like(ua, 9e4)
    profile = grid.lev.log() + 1.2
    profile = profile - (profile * grid.thickness).sum()  # carries no mass: outflow aloft, inflow below
    phi = grid.latitude
    overturning = 20.0 * phi.sin() * phi.cos() * profile
    balanced = column_continuity_residual(ua + 0 * profile, va + overturning, ps, grid)
    assert balanced.shape == (32, 64)
    assert size(grid, balanced) < TOLERANCE / 20
    assert size(grid, column_continuity_residual(ua + 0 * profile, va + overturning.abs(), ps, grid)) > TOLERANCE


def test_dry_mass_is_what_the_vapour_leaves(make_grid: Any) -> None:
    grid = make_grid()
    ps = mountains(grid)
    dry = dry_mass(ps, torch.zeros(4, 16, 32, dtype=torch.float64), grid)
    assert float(dry) == pytest.approx(float(grid.global_mean(ps)))
    hus = 0.02 * grid.lev.expand(4, 16, 32)
    moist_ps = ps / (1 - (hus * grid.thickness).sum(-3))  # vapour added on top of the dry air
    assert float(dry_mass(moist_ps, hus, grid)) == pytest.approx(float(dry))
    assert abs(float(dry_mass_residual(moist_ps, hus, dry, grid))) < 1e-12  # a change of humidity costs nothing
    assert abs(float(dry_mass_residual(moist_ps, 0 * hus, dry, grid))) > TOLERANCES["dry-mass"]  # vapour taken for air


def test_moving_air_about_keeps_the_dry_mass_and_adding_air_does_not(make_grid: Any) -> None:
    grid = make_grid()
    ps, hus = mountains(grid), torch.full((2, 4, 16, 32), 0.004, dtype=torch.float64)
    known = dry_mass(ps, hus[0], grid)
    both = torch.stack((ps + 500.0 * grid.latitude.sin(), ps + 100.0))
    residual = dry_mass_residual(both, hus, known, grid)
    assert residual.shape == (2,)
    assert abs(float(residual[0])) < 1e-12
    assert float(residual[1]) == pytest.approx(100.0 * (1 - 0.004) / float(known))
    assert float(residual[1]) > TOLERANCES["dry-mass"]
