"""Physics for the datacube task: the constraints on predicted months, as a term of the loss and as compliance scores.

Predictions come in learned units and are turned to SI first. A mirrored or turned world is a world on the same grid, so
its residuals are taken as they are. The dry mass that a prediction must keep is that of its last input month.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from astrofed.client.data.contract import FIELDS
from astrofed.client.tasks.datacube_batches import Batch
from astrofed.client.tasks.datacube_samples import Sample, World
from astrofed.client.tasks.datacube_scales import to_si
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.datacube_layout import VARIABLES
from astrofed.shared.physics import CONSTRAINTS, TOLERANCES
from astrofed.shared.physics.constraints import NotEvaluable, State, evaluate, missing_fields
from astrofed.shared.physics.grid import Grid, UnfitGrid
from astrofed.shared.physics.mass import dry_mass


class ConstraintNotEvaluable(UserMistake):
    """A plan puts weight on a physics constraint that its variables can't be checked for."""


class PhysicsTerm:
    """What the plan's physics weights add to the training loss.

    Raises:
        UnknownConstraint: a weight's name is no constraint.
        ConstraintNotEvaluable: a constraint with a weight needs variables that the task leaves out.
    """

    def __init__(self, weights: Mapping[str, float], variables: Sequence[str]) -> None:
        for name, weight in weights.items():
            missing = missing_fields(name, variables)
            if missing and weight:
                raise ConstraintNotEvaluable(
                    f"physics.weights.{name} = {weight:g} needs the variables {', '.join(missing)}, which "
                    "task.variables leaves out; add them or set the weight to 0"
                )
        self.weights = {name: weight for name, weight in weights.items() if weight}

    def __call__(self, world: World, batch: Batch, predicted: Tensor) -> Tensor:
        """Return Σ weight · penalty over the constraints, a dimensionless scalar (see `Residual.penalty`).

        `predicted` is in learned units [batch, variable, climate_time, geological_time, lev, lat, lon].

        Raises:
            UnfitGrid: the world's grid is not global.
        """
        total = predicted.new_zeros(())
        if self.weights:
            state = _state(world, predicted, batch.last, [sample.epochs for sample in batch.samples])
            for name, weight in self.weights.items():
                residual = evaluate(name, state)
                if isinstance(residual, NotEvaluable):
                    raise ConstraintNotEvaluable(f"physics.weights.{name}: {residual.constraint} {residual.reason}")
                total = total + weight * residual.penalty()
        return total


def compliance_metrics(
    world: World, samples: Sequence[Sample], predictions: Sequence[Tensor], *, with_data: bool
) -> dict[str, float]:
    """Return how much of the predictions' scored epochs complies with each constraint.

    Keys: "physics/<constraint>/compliance", the area-weighted fraction of cells below the tolerance (of months where
    the residual is global), and "physics/<constraint>/tolerance"; "physics/<constraint>/masked", the fraction where it
    can't be asked for, if there is any; with `with_data` also "baseline/data/physics/<constraint>/compliance", the
    score of the true months. What can't be evaluated, for want of fields or of a global grid, is left out.

    Args:
        world: its grid and its flux.
        samples: what was predicted.
        predictions: one a sample, learned units [variable, climate_time, geological_time, lev, lat, lon].
        with_data: whether to score the true months too.
    """
    try:
        own = _tally(world, samples, predictions)
        data = _tally(world, samples, [world.targets(sample) for sample in samples]) if with_data else {}
    except UnfitGrid:
        return {}
    metrics = {}
    for name, (complying, counted, total) in own.items():
        if counted:
            metrics[f"physics/{name}/compliance"] = complying / counted
            metrics[f"physics/{name}/tolerance"] = TOLERANCES[name]
        if counted < total:
            metrics[f"physics/{name}/masked"] = 1 - counted / total
    for name, (complying, counted, _) in data.items():
        if counted:
            metrics[f"baseline/data/physics/{name}/compliance"] = complying / counted
    return metrics


@torch.no_grad()
def _tally(
    world: World, samples: Sequence[Sample], predictions: Sequence[Tensor]
) -> dict[str, tuple[float, float, float]]:
    """Sum the weights that comply, that count, and of everything, over the samples' scored epochs, by constraint."""
    found: dict[str, list[Tensor]] = {}
    for sample, prediction in zip(samples, predictions, strict=True):
        scored = list(sample.scored)
        epochs = [sample.epochs[position] for position in scored]
        state = _state(world, prediction[None, :, :, scored], world.last(sample)[None, :, :, scored], [epochs])
        for name in CONSTRAINTS:
            residual = evaluate(name, state)
            if not isinstance(residual, NotEvaluable):
                weights = torch.stack((residual.complying_weight, residual.counted_weight, residual.total_weight))
                found.setdefault(name, []).append(weights)
    sums = {name: torch.stack(weights).sum(dim=0).tolist() for name, weights in found.items()}
    return {name: (complying, counted, total) for name, (complying, counted, total) in sums.items()}


def _state(world: World, predicted: Tensor, last: Tensor, epochs: Sequence[Sequence[int]]) -> State:
    """The state of predicted months after a last input month, both in learned units with a batch axis in front."""
    cube = world.cube
    grid = Grid.of(cube.lev, cube.lat_deg, cube.lon_deg, cube.planet, predicted.dtype)
    flux = torch.tensor(np.stack([cube.flux_w_m2[list(each)] for each in epochs]), dtype=predicted.dtype)[:, None]
    before = _fields(last, world.layout.variables)
    known = dry_mass(before["ps"], before["hus"], grid) if {"ps", "hus"} <= before.keys() else None
    return State(_fields(predicted, world.layout.variables), grid, flux, known)


def _fields(learned: Tensor, variables: Sequence[str]) -> dict[str, Tensor]:
    """SI fields by name, [batch, climate_time, geological_time, lev, lat, lon]; those without levels have no lev.

    A wild prediction of temperature or pressure is kept above 1 K or 1 Pa, where logarithms and quotients are finite.
    """
    fields = {}
    for index, name in enumerate(variables):
        values = to_si(learned[:, index : index + 1], (name,))[:, 0]
        values = values.clamp(min=1.0) if FIELDS[name].positive else values
        fields[name] = values if VARIABLES[name].levels else values[..., 0, :, :]
    return fields
