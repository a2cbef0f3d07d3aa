"""Physics on the datacube task's predictions: units, symmetries, epochs, and what can't be evaluated."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from astrofed.client.data.cube import Cube, build_cube, read_cube
from astrofed.client.tasks.datacube_batches import Batch, mirrored, rolled, stack
from astrofed.client.tasks.datacube_physics import (
    ConstraintNotEvaluable,
    FixerNotEvaluable,
    PhysicsFixers,
    PhysicsTerm,
    compliance_metrics,
)
from astrofed.client.tasks.datacube_samples import Sample, World, all_samples, held_out_samples
from astrofed.client.tasks.datacube_scales import Scales
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.datacube_layout import DatacubeLayout
from astrofed.shared.physics import CONSTRAINTS, TOLERANCES
from astrofed.shared.physics.constraints import UnknownConstraint, missing_fields
from astrofed.shared.physics.fixers import FIXERS
from astrofed.shared.physics.grid import UnfitGrid
from astrofed.simulations.bundled import resolve_bundled
from astrofed.simulations.synthetic import synthetic_world

VARIABLES = ("ta", "hus", "ua", "va", "zg", "ps", "ts", "rst", "rlut")
LAYOUT = DatacubeLayout(variables=VARIABLES, months_in=2)
EVALUABLE = tuple(name for name in CONSTRAINTS if not missing_fields(name, VARIABLES))
EVERYTHING = dict.fromkeys(EVALUABLE, 1.0)
COLUMN = {name: index for index, name in enumerate(VARIABLES)}


@pytest.fixture(scope="module")
def cube() -> Cube:
    return synthetic_world(5, lev=5, lat=16, lon=12)


@pytest.fixture(scope="module")
def world(cube: Cube) -> World:
    return World(cube, LAYOUT, "synthetic")


def batch_of(world: World, samples: list[Sample]) -> Batch:
    levels = world.fields.shape[3]
    ones = torch.ones(len(world.layout.variables), 1, 1, levels, 1, 1)
    return stack(world, samples, Scales(mean=0 * ones, field=ones, change=ones))


def truth(world: World, samples: list[Sample]) -> list[Tensor]:
    return [world.targets(sample).clone() for sample in samples]


def noisy(batch: Batch) -> Tensor:
    """Targets with noise of some per cent of each variable's size."""
    noise = torch.randn(batch.target.shape, generator=torch.Generator().manual_seed(0))
    return batch.target * (1 + 0.03 * noise)


def test_an_unknown_weight_is_named_with_the_nearest_constraint() -> None:
    with pytest.raises(UnknownConstraint, match="no physics constraint 'thermal_wind'; did you mean 'thermal-wind'"):
        PhysicsTerm({"thermal_wind": 1.0}, VARIABLES)
    assert issubclass(UnknownConstraint, UserMistake)


def test_a_weight_on_what_cannot_be_evaluated_names_the_missing_variables() -> None:
    with pytest.raises(ConstraintNotEvaluable, match=r"physics.weights.hydrostatic = 0.5 needs the variables zg, hus"):
        PhysicsTerm({"hydrostatic": 0.5}, ("ta", "ua", "va", "ps"))
    PhysicsTerm({"hydrostatic": 0.0, "mass-continuity": 1.0}, ("ta", "ua", "va", "ps"))  # no weight, no need


def test_without_weights_nothing_is_added(world: World) -> None:
    batch = batch_of(world, [Sample(3, (0, 1), (0, 1))])
    assert float(PhysicsTerm({"energy": 0.0}, VARIABLES)(world, batch, noisy(batch))) == 0.0


def test_the_true_months_cost_little_and_broken_ones_much(world: World) -> None:
    batch = batch_of(world, [Sample(3, (0, 1), (0, 1)), Sample(7, (0, 1), (0, 1))])
    balanced = PhysicsTerm({"hydrostatic": 1.0, "thermal-wind": 1.0, "dry-mass": 1.0}, VARIABLES)
    assert float(balanced(world, batch, batch.target)) < 1e-3
    broken = noisy(batch)
    broken[:, COLUMN["ta"]] = 250.0  # no contrast that the winds could balance
    broken[:, [COLUMN["ua"], COLUMN["va"]]] = batch.target[:, [COLUMN["ua"], COLUMN["va"]]]
    broken[:, COLUMN["va"]] += 3.0  # from pole to pole
    broken[:, COLUMN["rlut"]] = 0.0
    broken[:, COLUMN["ps"]] *= 1.01
    broken[:, COLUMN["hus"]] *= 1.2  # twice the humidity
    broken[:, COLUMN["ta"], ..., -1, :, :] += 40.0  # a warm ground
    for name in EVALUABLE:
        whole, quarter = (PhysicsTerm({name: weight}, VARIABLES)(world, batch, broken) for weight in (1.0, 0.25))
        assert float(whole) > 0.01
        torch.testing.assert_close(quarter, 0.25 * whole)


@pytest.mark.parametrize("constraint", EVALUABLE)
def test_mirrored_and_turned_batches_cost_the_same(world: World, constraint: str) -> None:
    batch = batch_of(world, [Sample(4, (0, 1), (0, 1))])
    signs = LAYOUT.mirror_signs()
    term = PhysicsTerm({constraint: 1.0}, VARIABLES)
    prediction = noisy(batch)
    expected = term(world, batch, prediction)
    as_target = dataclasses.replace(batch, target=prediction)
    for other in (mirrored(as_target, signs), rolled(as_target, 5), rolled(mirrored(as_target, signs), 3)):
        torch.testing.assert_close(term(world, other, other.target), expected, rtol=1e-4, atol=1e-6)
    if constraint in ("mass-continuity", "thermal-wind"):
        no_sign = mirrored(as_target, torch.ones(len(VARIABLES)))
        assert abs(float(term(world, no_sign, no_sign.target) - expected)) > 1e-3 * float(expected)


@pytest.mark.parametrize("prediction", ["wild", "zero", "negative", "last month"])
def test_gradients_are_finite_whatever_is_predicted(world: World, prediction: str) -> None:
    """Zero and negative humidity, temperature and pressure included."""
    batch = batch_of(world, [Sample(4, (0, 1), (0, 1))])
    noise = torch.randn(batch.target.shape, generator=torch.Generator().manual_seed(1))
    values = {
        "wild": 1e4 * noise * batch.target,
        "zero": torch.zeros_like(batch.target),
        "negative": -batch.target,
        "last month": batch.last.clone(),
    }[prediction].requires_grad_()
    cost = PhysicsTerm(EVERYTHING, VARIABLES)(world, batch, values)
    (gradient,) = torch.autograd.grad(cost, values)
    assert math.isfinite(float(cost.detach()))
    assert torch.isfinite(gradient).all()


def test_descending_the_term_mends_a_prediction(world: World) -> None:
    samples = [Sample(4, (0, 1), (0, 1))]
    batch = batch_of(world, samples)
    prediction = batch.target.clone()
    noise = torch.randn(prediction[:, COLUMN["zg"]].shape, generator=torch.Generator().manual_seed(2))
    prediction[:, COLUMN["zg"]] += 30.0 * noise
    term = PhysicsTerm({"hydrostatic": 1.0}, VARIABLES)

    def complies() -> float:
        metrics = compliance_metrics(world, samples, list(prediction.detach()), with_data=False)
        return metrics["physics/hydrostatic/compliance"]

    assert complies() < 0.3
    optimizer = torch.optim.Adam([prediction.requires_grad_()], lr=1.0)
    for _ in range(120):
        optimizer.zero_grad()
        term(world, batch, prediction).backward()
        optimizer.step()
    assert complies() > 0.9


def test_the_true_months_comply_and_are_reported_beside_the_prediction(world: World) -> None:
    samples = held_out_samples(world.months, world.epochs, LAYOUT, 6)
    predictions = truth(world, samples)
    for prediction in predictions:
        prediction[COLUMN["zg"]] += 50.0 * torch.randn(prediction[0].shape, generator=torch.Generator().manual_seed(0))
    metrics = compliance_metrics(world, samples, predictions, with_data=True)
    for name in EVALUABLE:
        assert metrics[f"physics/{name}/tolerance"] == TOLERANCES[name]
        assert 0.0 <= metrics[f"physics/{name}/compliance"] <= 1.0
    assert metrics["baseline/data/physics/hydrostatic/compliance"] == 1.0
    assert metrics["physics/hydrostatic/compliance"] < 0.3
    for name in ("mass-continuity", "thermal-wind", "energy", "dry-mass", "saturation"):  # not touched
        assert metrics[f"physics/{name}/compliance"] == metrics[f"baseline/data/physics/{name}/compliance"]
    assert metrics["baseline/data/physics/thermal-wind/compliance"] > 0.95
    assert metrics["baseline/data/physics/dry-mass/compliance"] == 1.0
    assert 0.2 < metrics["physics/thermal-wind/masked"] < 1.0
    without = compliance_metrics(world, samples, predictions, with_data=False)
    assert without == {key: value for key, value in metrics.items() if not key.startswith("baseline/")}


def test_only_scored_epochs_count(world: World) -> None:
    samples = held_out_samples(world.months, world.epochs, LAYOUT, 3)
    predictions = truth(world, samples)
    expected = compliance_metrics(world, samples, predictions, with_data=False)
    for prediction in predictions:
        prediction[:, :, 0] *= 1.5  # the epoch that is context
    assert compliance_metrics(world, samples, predictions, with_data=False) == expected


def test_what_a_plan_leaves_out_is_left_out_of_the_scores(cube: Cube) -> None:
    layout = DatacubeLayout(variables=("ta", "hus", "ps", "ts"), months_in=2)
    world = World(cube, layout, "synthetic")
    samples = all_samples(world.months, world.epochs, layout)
    metrics = compliance_metrics(world, samples, truth(world, samples), with_data=True)
    assert {key.split("physics/")[1].split("/")[0] for key in metrics} == {
        "dry-mass",
        "static-stability",
        "saturation",
    }


def test_humidity_is_judged_as_humidity_not_as_its_root(cube: Cube) -> None:
    """Fields go to SI first: taken as learned, hus would be some 0.3 kg/kg."""
    world = World(cube, LAYOUT, "synthetic")
    samples = [Sample(4, (0, 1), (0, 1))]
    batch = batch_of(world, samples)
    metrics = compliance_metrics(world, samples, list(batch.target), with_data=False)
    assert metrics["physics/hydrostatic/compliance"] == 1.0
    as_root = batch.target.clone()
    as_root[:, COLUMN["hus"]] = as_root[:, COLUMN["hus"]] ** 0.25
    metrics = compliance_metrics(world, samples, list(as_root), with_data=False)
    assert metrics["physics/hydrostatic/compliance"] < 0.1


def test_every_epoch_is_held_against_its_own_flux(cube: Cube) -> None:
    """An imbalance of 5 % of the brighter epoch's quarter flux would be 7 % of the other's."""
    fields = {name: values.copy() for name, values in cube.fields.items() if name not in cube.derived}
    flux = np.array([1000.0, 1400.0])
    fields["rst"] = np.broadcast_to(0.7 * flux[:, None, None, None] / 4, fields["rst"].shape).copy()
    fields["rlut"] = -fields["rst"]
    fields["rlut"][1] += 0.05 * 1400.0 / 4
    world = World(build_cube(cube.planet, fields, {**cube.axes, "flux": flux}), LAYOUT, "two stars")
    for order, expected in (((0, 1), 1.0), ((1,), 1.0), ((0,), 1.0)):
        sample = Sample(4, order, tuple(range(len(order))))
        metrics = compliance_metrics(world, [sample], truth(world, [sample]), with_data=False)
        assert metrics["physics/energy/compliance"] == expected
    swapped = World(build_cube(cube.planet, fields, {**cube.axes, "flux": flux[::-1]}), LAYOUT, "two stars")
    sample = Sample(4, (0, 1), (0, 1))
    metrics = compliance_metrics(swapped, [sample], truth(swapped, [sample]), with_data=False)
    assert metrics["physics/energy/compliance"] == 0.5


def test_dry_mass_is_held_against_the_last_input_month(world: World) -> None:
    samples = [Sample(4, (0, 1), (0, 1))]
    (prediction,) = truth(world, samples)
    dry = prediction[COLUMN["ps"]].mean()
    for change, expected in ((0.5, 1.0), (2.0, 0.0)):  # in tolerances
        changed = prediction.clone()
        changed[COLUMN["ps"]] += change * TOLERANCES["dry-mass"] * dry
        metrics = compliance_metrics(world, samples, [changed], with_data=False)
        assert metrics["physics/dry-mass/compliance"] == expected


def test_a_region_is_not_evaluable_and_a_weight_on_it_is_refused(cube: Cube) -> None:
    north = {name: values[..., :8, :] for name, values in cube.given.items()}
    region = World(build_cube(cube.planet, north, {**cube.axes, "lat": cube.lat_deg[:8]}), LAYOUT, "north")
    samples = [Sample(4, (0, 1), (0, 1))]
    assert compliance_metrics(region, samples, truth(region, samples), with_data=True) == {}
    with pytest.raises(UnfitGrid, match="whole sphere"):
        PhysicsTerm({"dry-mass": 1.0}, VARIABLES)(region, batch_of(region, samples), truth(region, samples)[0][None])


def test_a_world_that_hardly_turns_says_that_its_thermal_wind_is_masked() -> None:
    cube = synthetic_world(1, lev=3, lat=8, lon=8)
    still = dataclasses.replace(cube.planet, rotation_period_s=1e9)
    fields = {name: values for name, values in cube.given.items()}
    world = World(build_cube(still, fields, cube.axes), LAYOUT, "still")
    samples = [Sample(4, (0, 1), (0, 1))]
    metrics = compliance_metrics(world, samples, truth(world, samples), with_data=True)
    assert metrics["physics/thermal-wind/masked"] == 1.0
    assert "physics/thermal-wind/compliance" not in metrics
    assert "baseline/data/physics/thermal-wind/compliance" not in metrics


def test_with_vertical_motion_continuity_is_checked_level_by_level() -> None:
    """On a GCM world: leaving wap out of the plan leaves the columns as a whole, which comply more easily."""
    cube = read_cube(resolve_bundled("worlds/w3_slow_ocean"))
    found = []
    for variables in (("ua", "va", "ps", "wap"), ("ua", "va", "ps")):
        layout = DatacubeLayout(variables=variables, months_in=2)
        world = World(cube, layout, "slow")
        samples = held_out_samples(world.months, world.epochs, layout, 6)
        predictions = truth(world, samples)
        found.append(compliance_metrics(world, samples, predictions, with_data=False))
        for prediction in predictions:
            prediction[:2] = prediction[:2].flip(-1)  # winds that fit nothing
        found.append(compliance_metrics(world, samples, predictions, with_data=False))
    scores = [metrics["physics/mass-continuity/compliance"] for metrics in found]
    assert scores[0] > 0.98
    assert scores[1] < 0.8
    assert scores[2] > 0.99


FLUXES = ("ta", "hus", "ua", "va", "zg", "ps", "rst", "rlut", "rss", "rls", "hfss", "hfls", "pr", "evap")


@pytest.fixture(scope="module")
def real() -> World:
    layout = DatacubeLayout(variables=FLUXES, months_in=2, months_out=2)
    return World(read_cube(resolve_bundled("worlds/w5_super_earth")), layout, "super-earth")


def wrong_months(world: World, samples: list[Sample]) -> tuple[Batch, Tensor]:
    batch = batch_of(world, samples)
    predicted = batch.target.clone()
    predicted[:, FLUXES.index("ps")] *= 1.004
    predicted[:, FLUXES.index("ta")] += 2.0
    predicted[:, FLUXES.index("pr")] *= 1.1
    noise = torch.randn(predicted[:, 4].shape, generator=torch.Generator().manual_seed(0))
    predicted[:, FLUXES.index("zg")] += 20 * noise
    return batch, predicted


def unit_scales(world: World) -> Scales:
    ones = torch.ones(len(world.layout.variables), 1, 1, world.fields.shape[3], 1, 1)
    return Scales(mean=0 * ones, field=ones, change=ones)


def test_real_months_close_their_budgets_and_wrong_ones_do_not(real: World) -> None:
    samples = [Sample(5, (0, 1), (0, 1)), Sample(8, (0, 1), (1,))]
    _, predicted = wrong_months(real, samples)
    metrics = compliance_metrics(real, samples, list(predicted), with_data=True)
    for name in ("water", "energy-budget"):
        assert metrics[f"baseline/data/physics/{name}/compliance"] == 1.0
        assert metrics[f"physics/{name}/compliance"] < 0.6


def test_fixed_predictions_comply_after_inverse_scaling_month_after_month(real: World) -> None:
    samples = [Sample(5, (0, 1), (0, 1)), Sample(8, (0, 1), (0, 1))]
    batch, predicted = wrong_months(real, samples)
    fixed = PhysicsFixers(FIXERS, FLUXES)(real, batch, predicted, unit_scales(real))
    metrics = compliance_metrics(real, samples, list(fixed), with_data=False)
    for name in ("hydrostatic", "dry-mass", "water", "energy-budget"):
        assert metrics[f"physics/{name}/compliance"] == 1.0, name
    kept = [index for index, name in enumerate(FLUXES) if name not in ("ps", "ta", "zg", "pr")]
    assert torch.equal(fixed[:, kept], predicted[:, kept])
    assert PhysicsFixers((), FLUXES)(real, batch, predicted, unit_scales(real)) is predicted


def test_fixing_turns_with_the_world(real: World) -> None:
    batch, predicted = wrong_months(real, [Sample(5, (0, 1), (0, 1))])
    fixers, scales = PhysicsFixers(FIXERS, FLUXES), unit_scales(real)
    fixed = fixers(real, batch, predicted, scales)
    signs = real.layout.mirror_signs()
    for other in (rolled, lambda b, _: mirrored(b, signs)):
        there = other(dataclasses.replace(batch, target=predicted), 7)
        expected = other(dataclasses.replace(batch, target=fixed), 7).target
        torch.testing.assert_close(fixers(real, there, there.target, scales), expected, rtol=1e-4, atol=1e-3)


def test_a_fixer_without_its_fields_is_refused_by_name() -> None:
    with pytest.raises(FixerNotEvaluable, match="'water' is not evaluable: it needs the variables pr, evap, which"):
        PhysicsFixers(("mass", "water"), VARIABLES)
    PhysicsFixers(("mass", "hydrostatic"), VARIABLES)


def test_balanced_penalties_pull_as_hard_as_the_error(world: World) -> None:
    """Whatever a penalty's size, its gradient by the prediction is weight times as long as the error's."""
    batch = batch_of(world, [Sample(4, (0, 1), (0, 1))])
    prediction = noisy(batch).requires_grad_()
    error = (prediction - batch.target).square().mean()
    (own,) = torch.autograd.grad(error, prediction, retain_graph=True)
    for name in ("hydrostatic", "thermal-wind", "dry-mass"):
        term = PhysicsTerm({name: 0.5}, VARIABLES)
        value = term.balanced(world, batch, prediction, error, prediction)
        (pull,) = torch.autograd.grad(value, prediction)
        assert float(pull.norm()) == pytest.approx(0.5 * float(own.norm()), rel=1e-3), name
    several = PhysicsTerm({"hydrostatic": 0.5, "dry-mass": 0.25}, VARIABLES)
    assert float(several.balanced(world, batch, prediction, error, prediction).detach()) > 0


def test_what_complies_is_not_pulled(world: World) -> None:
    batch = batch_of(world, [Sample(4, (0, 1), (0, 1))])
    prediction = batch.target.clone().requires_grad_()
    error = (prediction - batch.last).square().mean()
    term = PhysicsTerm({"dry-mass": 1.0}, VARIABLES)
    assert float(term.balanced(world, batch, prediction, error, prediction)) == 0.0
