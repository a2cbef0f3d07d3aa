"""The constraints on whole worlds: GCM cubes within their noise floors, the synthetic one by construction."""

import dataclasses
from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from astrofed.client.data.cube import Cube, read_cube
from astrofed.shared.physics import CONSTRAINTS, TOLERANCES
from astrofed.shared.physics.budget import MONTH_S
from astrofed.shared.physics.constraints import NEEDS, NotEvaluable, Residual, State, evaluate
from astrofed.shared.physics.grid import Grid
from astrofed.shared.physics.mass import dry_mass
from astrofed.simulations.bundled import bundled_names, resolve_bundled
from astrofed.simulations.synthetic import synthetic_world

WORLDS = [name.rpartition("/")[2] for name in bundled_names() if "/worlds/" in name.replace(":", "/")]
# The least compliance of each constraint over the worlds' own months; the exception rotates in 0.6 days.
FLOORS = {"hydrostatic": 1.0, "mass-continuity": 0.98, "thermal-wind": 0.8, "energy": 0.85, "dry-mass": 0.9}
FLOORS |= {"water": 0.9, "energy-budget": 0.95, "static-stability": 0.98, "saturation": 0.94}
KNOWN = tuple(FLOORS)  # no shipped world has density as a field of its own
LOWER = {("w2_fast_ocean", "thermal-wind"): 0.5}


@cache
def world(name: str) -> Cube:
    return read_cube(resolve_bundled(f"worlds/{name}"))


@cache
def fields_of(name: str) -> Mapping[str, Tensor]:
    """[geological_time, climate_time, …] in double precision."""
    needed = ({field for needs in NEEDS.values() for field in needs} | {"wap"}) - {"rho"}
    return {field: torch.from_numpy(world(name).fields[field].astype(np.float64)) for field in needed}


def state(cube: Cube, fields: Mapping[str, Tensor]) -> State:
    """Every month, held against the dry mass of the month before (the first against its own)."""
    grid = Grid.of(cube.lev, cube.lat_deg, cube.lon_deg, cube.planet, torch.float64)
    dry = dry_mass(torch.tensor(cube.fields["ps"]).double(), torch.tensor(cube.fields["hus"]).double(), grid)
    known = torch.cat((dry[:, :1], dry[:, :-1]), dim=1)
    before = {name: torch.cat((field[:, :1], field[:, :-1]), dim=1) for name, field in fields.items()}
    return State(fields, grid, torch.tensor(cube.flux_w_m2.copy())[:, None], known, before, MONTH_S)


def compliance(found: State, constraint: str) -> float:
    residual = evaluate(constraint, found)
    assert isinstance(residual, Residual)
    if constraint in ("water", "energy-budget"):  # nothing is known of what flowed before the first month
        return float((residual.values[:, 1:].abs() < TOLERANCES[constraint]).double().mean())
    return float(residual.complying_weight / residual.counted_weight)


@pytest.mark.parametrize("constraint", KNOWN)
@pytest.mark.parametrize("name", WORLDS)
def test_the_gcm_worlds_score_as_physics_says(name: str, constraint: str) -> None:
    found = compliance(state(world(name), fields_of(name)), constraint)
    assert found >= LOWER.get((name, constraint), FLOORS[constraint])


PERTURBED = {
    "hydrostatic": "heights 20 m off at random",
    "mass-continuity": "no vertical motion",
    "thermal-wind": "temperature of the opposite season",
    "energy": "a fifth more outgoing radiation",
    "dry-mass": "100 Pa more everywhere",
    "water": "a tenth less rain",
    "energy-budget": "a tenth less sunlight at the surface",
    "static-stability": "levels 10 K warmer and colder in turn",
    "saturation": "half as much vapour again",
}


def perturb(fields: Mapping[str, Tensor], how: str) -> dict[str, Tensor]:
    changed = dict(fields)
    if how == "heights 20 m off at random":
        noise = torch.randn(fields["zg"].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        changed["zg"] = fields["zg"] + 20.0 * noise
    elif how == "no vertical motion":
        changed["wap"] = torch.zeros_like(fields["wap"])
    elif how == "temperature of the opposite season":
        changed["ta"] = fields["ta"].roll(6, 1)
    elif how == "a fifth more outgoing radiation":
        changed["rlut"] = 1.2 * fields["rlut"]
    elif how == "100 Pa more everywhere":
        changed["ps"] = fields["ps"] + 100.0
    elif how == "a tenth less rain":
        changed["pr"] = 0.9 * fields["pr"]
    elif how == "a tenth less sunlight at the surface":
        changed["rss"] = 0.9 * fields["rss"]
    elif how == "levels 10 K warmer and colder in turn":
        turn = torch.tensor([10.0, -10.0], dtype=torch.float64).repeat(fields["ta"].shape[-3] // 2)
        changed["ta"] = fields["ta"] + turn[:, None, None]
    elif how == "half as much vapour again":
        changed["hus"] = 1.5 * fields["hus"]
    return changed


@pytest.mark.parametrize("constraint", KNOWN)
@pytest.mark.parametrize("name", WORLDS)
def test_perturbed_worlds_score_visibly_lower(name: str, constraint: str) -> None:
    fields = fields_of(name)
    truth = compliance(state(world(name), fields), constraint)
    assert compliance(state(world(name), perturb(fields, PERTURBED[constraint])), constraint) < truth - 0.08


def test_winds_are_balanced_outside_the_tropics_and_not_inside() -> None:
    """Root mean square of the zonal mean residual in the free atmosphere, earthlike world."""
    cube, fields = world("earthlike"), fields_of("earthlike")
    residual = evaluate("thermal-wind", state(cube, fields))
    assert isinstance(residual, Residual)
    zonal = residual.values[0].mean(dim=(0, 1, -1)) / torch.from_numpy(np.sin(np.deg2rad(cube.lat_deg)))
    free = zonal[2:7].square().mean(0).sqrt()
    latitude = np.abs(cube.lat_deg)
    assert free[torch.from_numpy((latitude > 30) & (latitude < 70))].max() < 0.15
    assert free[torch.from_numpy(latitude < 5)].min() > 0.15
    ground = zonal[-1].abs()
    assert ground[torch.from_numpy(latitude > 30)].mean() > 2 * free[torch.from_numpy(latitude > 30)].mean()  # friction


def test_the_slow_rotator_says_that_it_is_mostly_masked() -> None:
    shares = {}
    for name in ("earthlike", "w3_slow_ocean"):
        residual = evaluate("thermal-wind", state(world(name), fields_of(name)))
        assert isinstance(residual, Residual)
        shares[name] = float(residual.counted_weight / residual.total_weight)
    assert shares["w3_slow_ocean"] < 0.1 < 0.2 < shares["earthlike"]


@pytest.mark.parametrize("name", ["earthlike", "w5_super_earth"])
def test_another_planets_constants_break_hydrostatic_balance(name: str) -> None:
    """Dry air for N2 and CO2, or Earth's gravity for another's."""
    cube = world(name)
    right = state(cube, fields_of(name))
    for wrong in ({"molar_mass_kg_mol": 28.97e-3}, {"gravity_m_s2": cube.planet.gravity_m_s2 * 1.02}):
        grid = dataclasses.replace(right.grid, planet=dataclasses.replace(cube.planet, **wrong))
        assert compliance(dataclasses.replace(right, grid=grid), "hydrostatic") < 0.05


def test_the_synthetic_world_is_balanced_by_construction() -> None:
    """Hydrostatic balance and dry mass to rounding; no vertical motion.

    Its winds are taken from differences of second order.
    """
    cube = synthetic_world(3, lev=8, lat=32, lon=32)
    fields = {name: torch.tensor(values).double() for name, values in cube.fields.items()}
    found = state(cube, fields)
    largest = {}
    for constraint in CONSTRAINTS:
        residual = evaluate(constraint, found)
        if constraint in ("water", "energy-budget", "ideal-gas"):  # its fluxes at the surface and its density are none
            assert isinstance(residual, NotEvaluable)
            continue
        assert isinstance(residual, Residual)
        asked = (residual.values * residual.counted).abs()
        inside = asked[..., 1:-1, :] if asked.dim() > 2 else asked  # beside the poles its generator is of first order
        largest[constraint] = float(inside.max()) / TOLERANCES[constraint]
    assert largest["hydrostatic"] < 0.01
    assert largest["thermal-wind"] < 0.2
    assert largest["dry-mass"] < 0.01
    assert largest["static-stability"] == largest["saturation"] == 0.0
