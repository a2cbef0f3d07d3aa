"""What holds for every constraint: differentiable, blind to symmetries, silent where it can't be evaluated."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from astrofed.shared.physics import CONSTRAINTS, TOLERANCES
from astrofed.shared.physics.budget import MONTH_S
from astrofed.shared.physics.constraints import (
    NEEDS,
    NotEvaluable,
    Residual,
    State,
    UnknownConstraint,
    evaluate,
    missing_fields,
)
from astrofed.shared.physics.grid import Grid

FLUX = torch.tensor(1361.0, dtype=torch.float64)
DRY = torch.tensor(9.8e4, dtype=torch.float64)
VOLUME = {"ta": (260.0, 20.0), "hus": (0.01, 0.003), "ua": (5.0, 10.0), "va": (0.0, 5.0), "wap": (0.0, 0.05)}
VOLUME |= {"zg": (6e3, 500.0), "rho": (0.8, 0.2)}
SURFACE = {"ps": (9.8e4, 2e3), "rst": (240.0, 30.0), "rlut": (-240.0, 30.0), "phis": (3e3, 1e3)}
SURFACE |= {"rss": (170.0, 20.0), "rls": (-60.0, 10.0), "hfss": (-15.0, 5.0), "hfls": (-80.0, 10.0)}
SURFACE |= {"pr": (3e-5, 5e-6), "evap": (-3e-5, 5e-6)}


def random_fields(grid: Grid, lon: int, seed: int, leading: tuple[int, ...] = (2,)) -> dict[str, Tensor]:
    """Any fields at all, in SI units and of plausible size."""
    generator = torch.Generator().manual_seed(seed)
    levels, rows = len(grid.lev), len(grid.latitude)

    def draw(mean: float, spread: float, *shape: int) -> Tensor:
        noise = torch.randn(*leading, *shape, rows, lon, generator=generator, dtype=torch.float64)
        return mean + spread * noise.clamp(-2, 2)

    fields = {name: draw(*size, levels) for name, size in VOLUME.items()}
    fields["ta"] = fields["ta"] + 150 * (grid.lev - 0.4)  # so warm a ground that the air above is unstable
    return fields | {name: draw(*size) for name, size in SURFACE.items()}


def earlier(fields: dict[str, Tensor]) -> dict[str, Tensor]:
    """The month before: a little colder, drier and calmer."""
    return {name: (0.99 * field).detach() for name, field in fields.items()}


def residual(
    constraint: str, fields: dict[str, Tensor], grid: Grid, before: dict[str, Tensor] | None = None
) -> Residual:
    found = evaluate(constraint, State(fields, grid, FLUX, DRY, before or earlier(fields), MONTH_S))
    assert isinstance(found, Residual)
    return found


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_gradients_of_residuals_and_penalties_are_exact(make_grid: Any, constraint: str) -> None:
    grid = make_grid(lev=3, lat=4, lon=4)
    fields = random_fields(grid, 4, seed=3, leading=())
    before = earlier(fields)
    names = [*NEEDS[constraint], *(["wap"] if constraint == "mass-continuity" else [])]

    def values(*tensors: Tensor) -> Tensor:
        return residual(constraint, dict(zip(names, tensors, strict=True)), grid, before).values

    def penalty(*tensors: Tensor) -> Tensor:
        return residual(constraint, dict(zip(names, tensors, strict=True)), grid, before).penalty()

    inputs = [fields[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(values, inputs, atol=1e-5)
    assert torch.autograd.gradcheck(penalty, inputs, atol=1e-5)
    assert all(gradient.abs().max() > 0 for gradient in torch.autograd.grad(values(*inputs).square().sum(), inputs))


def test_the_columns_continuity_is_differentiable(make_grid: Any) -> None:
    grid = make_grid(lev=3, lat=4, lon=4)
    fields = random_fields(grid, 4, seed=4, leading=())

    def values(ua: Tensor, va: Tensor, ps: Tensor) -> Tensor:
        found = residual("mass-continuity", {"ua": ua, "va": va, "ps": ps}, grid)
        assert found.values.shape == (4, 4)
        return found.values

    assert torch.autograd.gradcheck(values, [fields[name].requires_grad_() for name in ("ua", "va", "ps")], atol=1e-5)


def rolled(fields: dict[str, Tensor], cells: int) -> dict[str, Tensor]:
    return {name: field.roll(cells, -1) for name, field in fields.items()}


def mirrored(fields: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: field.flip(-2) * (-1 if name == "va" else 1) for name, field in fields.items()}


def mirrored_without_its_sign(fields: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: field.flip(-2) for name, field in fields.items()}


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.sampled_from(CONSTRAINTS), st.integers(0, 2**31), st.integers(0, 11))
def test_turning_a_world_turns_its_residuals(constraint: str, seed: int, cells: int) -> None:
    grid = small_grid()
    fields = random_fields(grid, 12, seed)
    one, other = residual(constraint, fields, grid), residual(constraint, rolled(fields, cells), grid)
    expected = one.values.roll(cells, -1) if one.values.dim() > 1 else one.values
    torch.testing.assert_close(other.values, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other.penalty(), one.penalty())
    torch.testing.assert_close(other.complying_weight, one.complying_weight)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.sampled_from(CONSTRAINTS), st.integers(0, 2**31))
def test_mirroring_a_world_at_its_equator_mirrors_its_residuals(constraint: str, seed: int) -> None:
    grid = small_grid()
    fields = random_fields(grid, 12, seed)
    one, other = residual(constraint, fields, grid), residual(constraint, mirrored(fields), grid)
    expected = one.values.flip(-2) if one.values.dim() > 1 else one.values
    torch.testing.assert_close(other.values.abs(), expected.abs(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other.penalty(), one.penalty())
    torch.testing.assert_close(other.complying_weight, one.complying_weight)


@pytest.mark.parametrize("constraint", ["mass-continuity", "thermal-wind"])
def test_mirroring_without_the_sign_of_v_is_another_world(constraint: str) -> None:
    grid = small_grid()
    fields = random_fields(grid, 12, seed=1)
    one, other = residual(constraint, fields, grid), residual(constraint, mirrored_without_its_sign(fields), grid)
    assert not torch.allclose(other.values.abs(), one.values.flip(-2).abs(), rtol=0.01)


def small_grid() -> Grid:
    from astrofed.shared.planet import Planet

    planet = Planet("small", 6e6, 9.0, 5e4, 20.0, 0.0, 5500.0)
    return Grid.of([0.1, 0.4, 0.7], [75, 45, 15, -15, -45, -75], np.arange(12) * 30.0, planet, torch.float64)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_a_missing_field_is_not_taken_as_zero(make_grid: Any, constraint: str) -> None:
    grid = make_grid(lat=8, lon=8)
    fields = random_fields(grid, 8, seed=2)
    for name in NEEDS[constraint]:
        without = {key: field for key, field in fields.items() if key != name}
        found = evaluate(constraint, State(without, grid, FLUX, DRY, earlier(fields), MONTH_S))
        assert found == NotEvaluable(constraint, f"needs {name}")
        assert missing_fields(constraint, without) == (name,)


def test_what_is_not_known_of_the_world_is_not_made_up(make_grid: Any) -> None:
    grid = make_grid(lat=8, lon=8)
    state = State(random_fields(grid, 8, seed=2), grid)
    assert evaluate("energy", state) == NotEvaluable("energy", "needs the stellar flux")
    assert evaluate("dry-mass", state) == NotEvaluable("dry-mass", "needs the dry mass at another time")
    for budget in ("water", "energy-budget"):
        assert evaluate(budget, state) == NotEvaluable(budget, "needs the month before")
        without = {name: field for name, field in state.fields.items() if name != "hus"}
        known = dataclasses.replace(state, before=without, interval_s=MONTH_S)
        assert evaluate(budget, known) == NotEvaluable(budget, "needs the month before")
    known = dataclasses.replace(state, before=state.fields, interval_s=MONTH_S)
    assert evaluate("energy-budget", known) == NotEvaluable("energy-budget", "needs the stellar flux")


def test_an_unknown_constraint_is_named_with_the_nearest(make_grid: Any) -> None:
    with pytest.raises(UnknownConstraint, match="did you mean 'thermal-wind'"):
        missing_fields("thermal_winds", ())
    with pytest.raises(UnknownConstraint, match="there are: hydrostatic, mass-continuity"):
        evaluate("xyz", State({}, make_grid()))


def test_names_needs_and_tolerances_agree() -> None:
    assert CONSTRAINTS == (
        "hydrostatic", "mass-continuity", "thermal-wind", "energy", "dry-mass",
        "water", "energy-budget", "static-stability", "saturation", "ideal-gas",
    )  # fmt: skip
    assert set(NEEDS) == set(CONSTRAINTS) == set(TOLERANCES)


def made_up(values: list[float], counted: list[bool] | None = None) -> Residual:
    """A residual of three cells, the first twice as large as the others, in units of a tolerance of 0.3."""
    tensor = torch.tensor(values, dtype=torch.float64) * TOLERANCES["thermal-wind"]
    area = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    return Residual("thermal-wind", tensor, area, torch.tensor(counted or [True] * 3))


def test_compliance_weighs_cells_by_area_and_leaves_masked_ones_out() -> None:
    one = made_up([0.9, -2.0, -0.5])
    assert float(one.complying_weight / one.counted_weight) == pytest.approx(0.75)
    masked = made_up([0.9, -2.0, -0.5], [False, True, True])
    assert float(masked.complying_weight / masked.counted_weight) == pytest.approx(0.5)
    assert float(masked.counted_weight / masked.total_weight) == pytest.approx(0.5)
    nothing = made_up([0.0, math.nan, 1.0], [True, True, True])
    assert float(nothing.complying_weight) == pytest.approx(0.5)  # neither NaN nor the tolerance itself complies


def test_the_penalty_asks_for_no_less_than_the_data_have_and_never_pulls_harder_than_the_tolerance() -> None:
    assert float(made_up([0.99, -1.0, 0.0]).penalty()) == 0.0
    assert float(made_up([2.0, 0.0, 0.0]).penalty()) == pytest.approx(0.5 * (math.sqrt(2) - 1))
    assert float(made_up([-2.0, 9.0, 0.0], [True, False, True]).penalty()) == pytest.approx(0.5 * (math.sqrt(2) - 1))
    for size in (1.001, 3.0, 1e3, 1e9):
        values = torch.tensor([size, -size, 0.0], dtype=torch.float64, requires_grad=True)
        wild = Residual("thermal-wind", values * 0.3, torch.ones(3, dtype=torch.float64), torch.tensor([True] * 3))
        (gradient,) = torch.autograd.grad(wild.penalty(), values)
        assert torch.isfinite(gradient).all()
        assert 0 < gradient.abs().max() <= 1 / 3


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("shape", ["wild", "at rest"])
def test_gradients_are_finite_whatever_the_fields(make_grid: Any, constraint: str, shape: str) -> None:
    """In single precision, as in training: fields a thousand times too large, and all alike (|r| = 0 or masked)."""
    grid = make_grid(lat=8, lon=8)
    grid = Grid.of(grid.lev.flatten(), grid.latitude.flatten().rad2deg(), np.arange(8) * 45.0, grid.planet)
    spread = 1e3 if shape == "wild" else 0.0
    generator = torch.Generator().manual_seed(0)
    fields = {}
    for name, (mean, size) in (VOLUME | SURFACE).items():
        levels = (4,) if name in VOLUME else ()
        noise = torch.randn(2, *levels, 8, 8, generator=generator)
        lowest = 1.0 if name in ("ta", "ps") else -math.inf
        fields[name] = (mean + spread * size * noise).clamp(min=lowest).requires_grad_()
    found = evaluate(constraint, State(fields, grid, FLUX.float(), DRY.float(), earlier(fields), MONTH_S))
    assert isinstance(found, Residual)
    used = [*NEEDS[constraint]]
    gradients = torch.autograd.grad(found.penalty(), [fields[name] for name in used])
    assert torch.isfinite(found.penalty())
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_levels_latitudes_and_longitudes_may_run_either_way(make_grid: Any) -> None:
    grid = make_grid(lev=4, lat=8, lon=12)
    fields = random_fields(grid, 12, seed=9)
    axes: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("lev", lambda field: field.flip(-3) if field.dim() == 4 else field),
        ("lat", lambda field: field.flip(-2)),
        ("lon", lambda field: field.flip(-1)),
    ]
    for axis, turn in axes:
        coordinates = {"lev": grid.lev.flatten(), "lat": grid.latitude.flatten().rad2deg(), "lon": np.arange(12) * 30.0}
        coordinates[axis] = coordinates[axis].flip(0) if axis != "lon" else np.arange(12)[::-1] * 30.0
        turned = Grid.of(*coordinates.values(), grid.planet, torch.float64)
        for constraint in CONSTRAINTS:
            one = residual(constraint, fields, grid)
            other = residual(constraint, {name: turn(field) for name, field in fields.items()}, turned)
            torch.testing.assert_close(other.penalty(), one.penalty())
            torch.testing.assert_close(other.complying_weight, one.complying_weight)
