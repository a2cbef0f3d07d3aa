"""Budgets of water and energy: exact where fluxes are constant, of second order in time, blind to transport."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from astrofed.shared.physics import TOLERANCES
from astrofed.shared.physics.budget import column_energy, energy_budget_residual, water_path, water_residual
from astrofed.shared.physics.grid import Grid

FLUX = torch.tensor(1361.0, dtype=torch.float64)


def atmosphere(grid: Grid, *, rain: float, evaporation: float, vapour: float) -> dict[str, Tensor]:
    """Dry air of 280 K with `vapour` kg/m² of water, evenly mixed."""
    gravity = grid.planet.gravity_m_s2
    volume = torch.ones(len(grid.lev), 16, 32, dtype=torch.float64)
    flat = torch.ones(16, 32, dtype=torch.float64)
    fields = {"ta": 280 * volume, "hus": vapour * gravity / 1e5 * volume, "ua": 0 * volume, "va": 0 * volume}
    fields |= {"ps": 1e5 * flat, "pr": rain * flat, "evap": -evaporation * flat, "phis": 0 * flat}
    return fields | {name: 0 * flat for name in ("rst", "rlut", "rss", "rls", "hfss", "hfls")}


def test_vapour_is_what_evaporates_less_what_rains(make_grid: Any) -> None:
    grid = make_grid()
    before = atmosphere(grid, rain=3e-5, evaporation=4e-5, vapour=25.0)
    after = atmosphere(grid, rain=3e-5, evaporation=4e-5, vapour=25.0 + 1e-5 * 86400)
    torch.testing.assert_close(water_path(before["ps"], before["hus"], grid), torch.tensor(25.0, dtype=torch.float64))
    assert abs(float(water_residual(after, before, 86400.0, grid))) < 1e-9
    after["pr"] = 1.1 * after["pr"]
    assert float(water_residual(after, before, 86400.0, grid)) == pytest.approx(0.05)
    assert TOLERANCES["water"] < 0.05


def test_warming_is_what_flows_in(make_grid: Any) -> None:
    """240 W/m² come in, 230 go out at the top and the ground takes 4: 6 W/m² warm the air by 0.05 K a day."""
    grid = make_grid()
    before = atmosphere(grid, rain=0.0, evaporation=0.0, vapour=0.0)
    flat = torch.ones(16, 32, dtype=torch.float64)
    before |= {"rst": 240 * flat, "rlut": -230 * flat, "rss": 170 * flat, "rls": -60 * flat, "hfss": -106 * flat}
    planet = grid.planet
    warming = 6.0 * 86400 / (planet.heat_capacity_j_kg_k * 1e5 / planet.gravity_m_s2)
    after = before | {"ta": before["ta"] + warming}
    assert abs(float(energy_budget_residual(after, before, 86400.0, FLUX, grid))) < 1e-9
    for change in ({"rlut": -236 * flat}, {"rss": 180 * flat}, {"hfss": 0 * flat}):
        assert abs(float(energy_budget_residual(after | change, before, 86400.0, FLUX, grid))) > 0.8 * 3 / 340


def test_energy_moved_from_place_to_place_is_no_gain(make_grid: Any) -> None:
    grid = make_grid()
    before = atmosphere(grid, rain=0.0, evaporation=0.0, vapour=0.0)
    contrast = 20 * torch.sin(grid.latitude).expand(16, 32)
    after = before | {"ta": before["ta"] + contrast, "rlut": before["rlut"] + contrast}
    assert abs(float(energy_budget_residual(after, before, 86400.0, FLUX, grid))) < 1e-9


def test_height_and_wind_count_as_energy(make_grid: Any) -> None:
    grid = make_grid()
    fields = atmosphere(grid, rain=0.0, evaporation=0.0, vapour=0.0)
    base, mass = float(column_energy(fields, grid)), 1e5 / grid.planet.gravity_m_s2
    assert float(column_energy(fields | {"ua": fields["ua"] + 20}, grid)) - base == pytest.approx(200 * mass)
    assert float(column_energy(fields | {"phis": fields["phis"] + 500}, grid)) - base == pytest.approx(500 * mass)


def test_a_seasons_budget_converges_with_second_order_of_the_interval(make_grid: Any) -> None:
    """Rain that follows a season: middles of intervals half as long leave a quarter of the residual."""
    grid, year, mean, swing = make_grid(), 3.1e7, 3e-5, 1e-5
    found = []
    for interval in (year / 12, year / 24, year / 48):
        states = []
        for time in (0.1 * year - interval / 2, 0.1 * year + interval / 2):
            phase = 2 * math.pi * time / year
            vapour = 25.0 - swing * year / (2 * math.pi) * math.sin(phase)
            states.append(atmosphere(grid, rain=mean + swing * math.cos(phase), evaporation=mean, vapour=vapour))
        found.append(abs(float(water_residual(states[1], states[0], interval, grid))))
    assert found[0] / found[1] == pytest.approx(4, rel=0.1) and found[1] / found[2] == pytest.approx(4, rel=0.1)
