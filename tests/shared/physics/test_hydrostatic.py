"""Hydrostatic residuals of columns whose heights are known."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from astrofed.shared.physics import TOLERANCES
from astrofed.shared.physics.grid import Grid
from astrofed.shared.physics.hydrostatic import hydrostatic_residual, virtual_temperature
from astrofed.shared.planet import Planet

TOLERANCE = TOLERANCES["hydrostatic"]


def isothermal(grid: Grid, temperature: float = 250.0) -> tuple[torch.Tensor, torch.Tensor]:
    """zg and ta [lev, lat, lon] of a dry isothermal atmosphere: z = −R T / g ln sigma."""
    ta = torch.full((len(grid.lev), len(grid.latitude), 8), temperature, dtype=torch.float64)
    return -grid.planet.gas_constant * ta / grid.planet.gravity_m_s2 * grid.lev.log(), ta


def adiabatic(grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """zg and ta of a dry adiabat: T = T₀ sigma^κ, g z = c_p (T₀ − T)."""
    planet = grid.planet
    ta = (300.0 * grid.lev ** (planet.gas_constant / planet.heat_capacity_j_kg_k)).expand(-1, len(grid.latitude), 8)
    return planet.heat_capacity_j_kg_k * (300.0 - ta) / planet.gravity_m_s2, ta


@pytest.mark.parametrize("gravity", [3.7, 9.81, 24.8])
@pytest.mark.parametrize("molar_mass", [2.3e-3, 28.97e-3, 44e-3])
def test_isothermal_atmospheres_of_any_planet_are_balanced(
    make_grid: Any, earth: Planet, gravity: float, molar_mass: float
) -> None:
    planet = dataclasses.replace(earth, gravity_m_s2=gravity, molar_mass_kg_mol=molar_mass)
    grid = make_grid(lev=6, planet=planet)
    zg, ta = isothermal(grid)
    assert hydrostatic_residual(zg, ta, None, grid).abs().max() < 1e-12


def test_adiabatic_atmospheres_converge_with_third_order_of_the_layers_thickness(make_grid: Any) -> None:
    errors = []
    for levels in (8, 15, 29):  # spacings of 1 : 1/2 : 1/4
        grid = make_grid(lev=levels)
        errors.append(float(hydrostatic_residual(*adiabatic(grid), None, grid).abs().max()))
    assert all(math.log2(coarse / fine) > 2.9 for coarse, fine in itertools.pairwise(errors))
    assert errors[-1] < TOLERANCE / 10


def test_moist_air_stands_higher_by_its_virtual_temperature(make_grid: Any, earth: Planet) -> None:
    grid = make_grid(lev=6)
    zg, ta = isothermal(grid)
    hus = torch.full_like(ta, 0.01)
    factor = 1 + earth.virtual_temperature_factor * 0.01
    assert virtual_temperature(ta, hus, earth)[0, 0, 0] == pytest.approx(250.0 * (1 + 0.608 * 0.01), rel=1e-4)
    assert hydrostatic_residual(zg * factor, ta, hus, grid).abs().max() < 1e-12
    assert (hydrostatic_residual(zg, ta, hus, grid).abs() > TOLERANCE).all()  # the vapour is left out


def test_levels_may_run_either_way(make_grid: Any, earth: Planet) -> None:
    grid = make_grid(lev=5)
    zg, ta = adiabatic(grid)
    zg = zg + torch.randn(zg.shape, dtype=zg.dtype, generator=torch.Generator().manual_seed(0))
    upward = Grid.of(grid.lev.flatten().flip(0), [60, 20, -20, -60], [0, 90, 180, 270], earth, torch.float64)
    turned = hydrostatic_residual(zg.flip(-3), ta.flip(-3), None, upward).flip(-3)
    torch.testing.assert_close(turned, -hydrostatic_residual(zg, ta, None, grid))


@pytest.mark.parametrize(
    ("mistake", "at_least"),
    [
        ("another gas", 0.1),
        ("the molar gas constant as the specific one", 10.0),
        ("geopotential as height", 1.0),
        ("depth as height", 0.2),
        ("degrees Celsius", 0.5),
        ("levels over latitudes", 0.1),
    ],
)
def test_known_mistakes_leave_large_residuals(make_grid: Any, mistake: str, at_least: float) -> None:
    grid = make_grid(lev=8, lat=8)
    zg, ta = isothermal(grid, temperature=260.0)
    planet = grid.planet
    if mistake == "another gas":
        planet = dataclasses.replace(planet, molar_mass_kg_mol=44e-3)
    if mistake == "the molar gas constant as the specific one":
        planet = dataclasses.replace(planet, molar_mass_kg_mol=1.0)
    found = {
        "geopotential as height": (zg * 9.81, ta),
        "depth as height": (-zg, ta),
        "degrees Celsius": (zg, ta - 273.15),
        "levels over latitudes": (zg.transpose(-3, -2), ta),
    }.get(mistake, (zg, ta))
    residual = hydrostatic_residual(*found, None, dataclasses.replace(grid, planet=planet))
    assert residual.abs().mean() > at_least * grid.log_step.abs().mean()
    assert (residual.abs() > TOLERANCE).all()


@pytest.mark.parametrize("perturb", ["height", "temperature"])
def test_a_perturbed_level_is_seen_on_both_its_sides(make_grid: Any, perturb: str) -> None:
    grid = make_grid(lev=6)
    zg, ta = isothermal(grid)
    if perturb == "height":
        zg[3] += 20.0
    else:
        ta[3] += 2.0
    broken = hydrostatic_residual(zg, ta, None, grid).abs() > TOLERANCE
    assert broken[2:4].all()
    assert not broken[[0, 1, 4]].any()
