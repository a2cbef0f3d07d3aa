"""Gas law, dry adiabat and saturation on analytic atmospheres."""

from typing import Any

import pytest
import torch

from astrofed.shared.physics import TOLERANCES
from astrofed.shared.physics.grid import Grid
from astrofed.shared.physics.thermo import (
    ideal_gas_residual,
    saturation_pressure,
    saturation_residual,
    static_stability_residual,
    vapour_pressure,
)
from astrofed.shared.planet import Planet


def column(grid: Grid, exponent: float, ground: float = 300.0) -> torch.Tensor:
    """T = ground · sigma^exponent [lev, lat, lon]: 0 is isothermal, κ = R / c_p adiabatic."""
    return (ground * grid.lev**exponent).expand(len(grid.lev), 16, 32)


def kappa(planet: Planet) -> float:
    return planet.gas_constant / planet.heat_capacity_j_kg_k


@pytest.mark.parametrize("lev", [2, 5, 9])
def test_isothermal_and_adiabatic_air_is_stable_whatever_the_resolution(
    make_grid: Any, earth: Planet, lev: int
) -> None:
    grid = make_grid(lev=lev)
    assert float(static_stability_residual(column(grid, 0.0), grid).max()) == 0.0
    assert float(static_stability_residual(column(grid, kappa(earth)), grid).max()) < 1e-12


@pytest.mark.parametrize("excess", [0.05, 0.5])
def test_a_steeper_lapse_rate_is_seen_as_what_it_exceeds(make_grid: Any, earth: Planet, excess: float) -> None:
    grid = make_grid()
    found = static_stability_residual(column(grid, kappa(earth) * (1 + excess)), grid)
    torch.testing.assert_close(found, torch.full_like(found, excess))


def test_the_dry_lapse_rate_on_earth_is_g_over_c_p(make_grid: Any, earth: Planet) -> None:
    """9.8 K/km: a column that cools by 10 K/km in hydrostatic balance is unstable by 2.4 %, one by 9 K/km is not."""
    grid = make_grid(lev=40)
    dry = earth.gravity_m_s2 / earth.heat_capacity_j_kg_k
    for lapse, expected in ((0.010, 0.010 / dry - 1), (0.009, 0.0)):
        found = static_stability_residual(column(grid, earth.gas_constant * lapse / earth.gravity_m_s2), grid)
        assert float(found.max()) == pytest.approx(expected, abs=1e-9)


def test_saturation_over_water_and_ice() -> None:
    """Values of the tables in Murphy & Koop (2005): 611 Pa at freezing, 2339 Pa at 20 °C, 103 Pa over ice at −20 °C."""
    found = saturation_pressure(torch.tensor([273.15, 293.15, 253.15], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([611.2, 2339.0, 103.3], dtype=torch.float64), rtol=3e-3, atol=0)
    below, above = saturation_pressure(torch.tensor([273.15 - 1e-9, 273.15 + 1e-9], dtype=torch.float64))
    torch.testing.assert_close(below, above, rtol=1e-6, atol=0)


@pytest.mark.parametrize("humidity", [0.5, 1.0, 1.3])
def test_air_is_judged_by_its_relative_humidity(make_grid: Any, earth: Planet, humidity: float) -> None:
    grid = make_grid()
    ta = column(grid, 0.19)
    ps = torch.full((16, 32), 1e5, dtype=torch.float64)
    vapour, pressure, ratio = humidity * saturation_pressure(ta), grid.lev * ps, 0.622
    ratio = 18.01528e-3 / earth.molar_mass_kg_mol
    hus = ratio * vapour / (pressure - (1 - ratio) * vapour)
    torch.testing.assert_close(vapour_pressure(hus, pressure, earth), vapour)
    found = saturation_residual(ta, hus, ps, grid)
    torch.testing.assert_close(found, torch.full_like(found, max(humidity - 1, 0)), atol=1e-9, rtol=0)


def test_density_follows_from_pressure_temperature_and_humidity(make_grid: Any, earth: Planet) -> None:
    grid = make_grid()
    ta = column(grid, 0.19)
    hus = torch.full_like(ta, 0.01)
    ps = torch.full((16, 32), 1e5, dtype=torch.float64)
    rho = grid.lev * ps / (287.0 * ta * (1 + 0.608 * hus))  # Earth's air
    assert float(ideal_gas_residual(rho, ta, hus, ps, grid).abs().max()) < TOLERANCES["ideal-gas"]
    assert float(ideal_gas_residual(1.01 * rho, ta, hus, ps, grid).abs().min()) > TOLERANCES["ideal-gas"]
    assert float(ideal_gas_residual(rho, ta, None, ps, grid).abs().min()) > TOLERANCES["ideal-gas"]
