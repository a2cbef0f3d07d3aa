"""Fixers: the constraint holds afterwards, nothing else moves, and nothing is made up."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from astrofed.client.data.cube import read_cube
from astrofed.shared.physics import TOLERANCES
from astrofed.shared.physics.budget import MONTH_S
from astrofed.shared.physics.constraints import NotEvaluable, Residual, State, evaluate
from astrofed.shared.physics.fixers import (
    CARRIERS,
    FIXERS,
    LARGEST_NET_FLUX,
    UnknownFixer,
    fix,
    fix_hydrostatic,
    fixer_needs,
)
from astrofed.shared.physics.grid import Grid
from astrofed.shared.physics.mass import dry_mass
from astrofed.simulations.bundled import resolve_bundled

HOLDS = {"mass": "dry-mass", "hydrostatic": "hydrostatic", "energy": "energy-budget", "water": "water"}
HOLDS |= {"radiation": "energy"}
TO = {"mass": 1e-6, "hydrostatic": 1e-6, "radiation": LARGEST_NET_FLUX / TOLERANCES["energy"] + 1e-6}
"""To how many tolerances a fixer brings its residual; where nothing is said, to nine tenths of one."""


@pytest.fixture(scope="module")
def truth() -> State:
    """The months of a real world on its own grid, each held against the month before."""
    cube = read_cube(resolve_bundled("worlds/w5_super_earth"))
    grid = Grid.of(cube.lev, cube.lat_deg, cube.lon_deg, cube.planet, torch.float64)
    fields = {name: torch.from_numpy(values.astype(np.float64)) for name, values in cube.fields.items()}
    dry = dry_mass(fields["ps"], fields["hus"], grid)
    return State(
        {name: values[:, 1:] for name, values in fields.items()},
        grid,
        torch.tensor(cube.flux_w_m2.copy())[:, None],
        dry[:, :-1],
        {name: values[:, :-1] for name, values in fields.items()},
        MONTH_S,
    )


@pytest.fixture(scope="module")
def wrong(truth: State) -> State:
    """A prediction with errors of a bad emulator's size in every carrier."""
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    fields = dict(truth.fields)
    fields["ps"] = fields["ps"] * 1.003 + 50 * noise(fields["ps"])
    fields["ta"] = fields["ta"] + 2.0 + noise(fields["ta"])
    fields["zg"] = fields["zg"] + 20 * noise(fields["zg"])
    fields["pr"] = fields["pr"] * 1.2
    return dataclasses.replace(truth, fields=fields)


def too_dark(state: State) -> State:
    """The same, giving off a fifth too little."""
    return dataclasses.replace(state, fields={**state.fields, "rlut": 0.8 * state.fields["rlut"]})


def worst(state: State, constraint: str) -> float:
    residual = evaluate(constraint, state)
    assert isinstance(residual, Residual)
    return float(residual.values.abs().max()) / TOLERANCES[constraint]


@pytest.mark.parametrize("name", FIXERS)
def test_afterwards_the_constraint_holds_and_only_carriers_moved(wrong: State, name: str) -> None:
    wrong = too_dark(wrong) if name == "radiation" else wrong
    assert worst(wrong, HOLDS[name]) > TO.get(name, 1)
    fixed, missed = fix(wrong, [name])
    assert missed == ()
    assert worst(fixed, HOLDS[name]) < TO.get(name, 0.9 + 1e-6)
    moved = {key for key, values in fixed.fields.items() if not torch.equal(values, wrong.fields[key])}
    assert moved == set(CARRIERS[name])


def test_all_of_them_together_hold_together_in_any_order_of_naming(wrong: State) -> None:
    fixed, missed = fix(wrong, FIXERS)
    assert missed == ()
    assert all(worst(fixed, HOLDS[name]) < max(TO.get(name, 0), 0.901) for name in FIXERS)
    again, _ = fix(wrong, FIXERS[::-1])
    assert all(torch.equal(values, again.fields[name]) for name, values in fixed.fields.items())


def test_the_gcm_s_own_months_are_hardly_touched(truth: State) -> None:
    """The dry mass is set, the rest is within the data's own noise."""
    fixed, _ = fix(truth, FIXERS)
    changes = {name: float((fixed.fields[name] - truth.fields[name]).abs().max()) for name in ("ps", "zg", "ta")}
    assert 0 < changes["ps"] < 150
    assert changes["zg"] < 2 and changes["ta"] < 0.05, changes
    torch.testing.assert_close(fixed.fields["pr"], truth.fields["pr"], rtol=1e-3, atol=0)
    assert torch.equal(fixed.fields["rlut"], truth.fields["rlut"])


def test_a_prediction_comes_nearer_to_the_truth(wrong: State, truth: State) -> None:
    """Errors that break a balance are errors: what mends the balance takes some of them away."""
    fixed, _ = fix(wrong, FIXERS)
    for name in ("ps", "zg", "ta", "pr"):
        before, after = ((s.fields[name] - truth.fields[name]).square().mean().sqrt() for s in (wrong, fixed))
        assert float(after) < 0.95 * float(before), name
    dark, (bright, _) = too_dark(wrong), fix(too_dark(wrong), ["radiation"])
    before, after = ((s.fields["rlut"] - truth.fields["rlut"]).square().mean().sqrt() for s in (dark, bright))
    assert float(after) < 0.95 * float(before)


def test_the_hydrostatic_change_is_the_smallest_that_balances(wrong: State) -> None:
    """Any other balanced state is further away, in the norm that was asked for."""
    fields, grid = wrong.fields, wrong.grid
    spreads = {"zg": torch.linspace(40, 5, 10), "ta": torch.full((10,), 1.5)}
    zg, ta = fix_hydrostatic(fields["zg"], fields["ta"], fields["hus"], grid, spreads)

    def distance(zg: Tensor, ta: Tensor) -> Tensor:
        factor = 1 + grid.planet.virtual_temperature_factor * fields["hus"]
        moved = (zg - fields["zg"]) / spreads["zg"][:, None, None], (ta - fields["ta"]) * factor / 1.5
        return moved[0].square().sum(-3) + moved[1].square().sum(-3)

    nearest = distance(zg, ta)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        other = fields["ta"] + 0.1 * torch.randn(ta.shape, generator=generator, dtype=torch.float64)
        balanced = fix_hydrostatic(zg, other + (ta - fields["ta"]), fields["hus"], grid, {"ta": torch.tensor(1e-9)})
        assert bool((distance(*balanced) >= nearest - 1e-9).all())


@pytest.mark.parametrize("order", [1, -1])
def test_levels_may_run_either_way(wrong: State, order: int) -> None:
    grid = wrong.grid
    if order < 0:
        grid = Grid.of(grid.lev.flatten().flip(0), grid.latitude.flatten().rad2deg(), np.arange(64) * 5.625,
                       grid.planet, torch.float64)  # fmt: skip

    def turn(fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.flip(-3) if v.dim() == 5 and order < 0 else v for k, v in fields.items()}

    assert wrong.before is not None
    other = dataclasses.replace(wrong, fields=turn(wrong.fields), before=turn(wrong.before), grid=grid)
    fixed, _ = fix(wrong, FIXERS)
    found, _ = fix(other, FIXERS)
    for name, values in turn(fixed.fields).items():
        torch.testing.assert_close(found.fields[name], values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FIXERS)
def test_gradients_of_fixers_are_exact(make_grid: Any, name: str) -> None:
    grid = make_grid(lev=3, lat=4, lon=4)
    generator = torch.Generator().manual_seed(5)
    sizes = {"ta": (260, 5), "hus": (0.005, 0.001), "ua": (5, 5), "va": (0, 5), "zg": (6e3, 99), "ps": (9.8e4, 2e3)}
    sizes |= {"pr": (3e-5, 5e-6), "evap": (-3e-5, 5e-6), "rst": (240, 30), "rlut": (-200, 30), "phis": (100, 50)}
    sizes |= {"rss": (170, 20), "rls": (-60, 10), "hfss": (-15, 5), "hfls": (-80, 10)}
    fields = {
        key: mean + spread * torch.rand(*((3,) if key in ("ta", "hus", "ua", "va", "zg") else ()), 4, 4,
                                        generator=generator, dtype=torch.float64)
        for key, (mean, spread) in sizes.items()
    }  # fmt: skip
    before = {key: 0.99 * values for key, values in fields.items()}
    given = (torch.tensor(1361.0).double(), torch.tensor(9.7e4).double(), before, MONTH_S)
    names = [key for key in fields if key in CARRIERS[name]]

    def corrected(*tensors: Tensor) -> tuple[Tensor, ...]:
        fixed, missed = fix(State(fields | dict(zip(names, tensors, strict=True)), grid, *given), [name])
        assert not missed
        scale = {"pr": 1e5, "ps": 1e-3}
        return tuple(fixed.fields[key] * scale.get(key, 1.0) for key in names)

    inputs = [fields[key].clone().requires_grad_() for key in names]
    assert torch.autograd.gradcheck(corrected, inputs, eps=1e-8 if name == "water" else 1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FIXERS)
def test_what_is_missing_is_said_and_nothing_is_touched(truth: State, name: str) -> None:
    for field in fixer_needs(name, ()):
        without = dataclasses.replace(truth, fields={k: v for k, v in truth.fields.items() if k != field})
        same, missed = fix(without, [name])
        assert same is without and missed == (NotEvaluable(name, f"needs {field}"),)
    blind = State(truth.fields, truth.grid)
    if name != "hydrostatic":
        _, missed = fix(blind, [name])
        needs = {"mass": "the dry mass at another time", "radiation": "the stellar flux"}.get(name, "the month before")
        assert missed == (NotEvaluable(name, f"needs {needs}"),)


def test_an_unknown_fixer_is_named_with_the_nearest(truth: State) -> None:
    with pytest.raises(UnknownFixer, match="no physics fixer 'hydrostatics'; did you mean 'hydrostatic'"):
        fix(truth, ["hydrostatics"])


def test_rain_never_turns_negative(truth: State) -> None:
    dry = dataclasses.replace(truth, fields={**truth.fields, "evap": 0 * truth.fields["evap"] + 1e-3})
    fixed, _ = fix(dry, ["water"])
    assert float(fixed.fields["pr"].min()) == 0.0
