"""Physics for the datacube task: constraints on predicted months as a term of the loss and as scores, and fixers.

Predictions come in learned units and are turned to SI first. A mirrored or turned world is a world on the same grid, so
its residuals are taken as they are. The dry mass that a prediction must keep is that of its last input month; budgets
run from that month to the first predicted one and on from month to month.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from astrofed.client.data.contract import FIELDS
from astrofed.client.tasks.datacube_batches import Batch
from astrofed.client.tasks.datacube_samples import Sample, World
from astrofed.client.tasks.datacube_scales import Scales, in_si, to_learned
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.datacube_layout import GEOPOTENTIAL, GEOPOTENTIAL_UNIT, VARIABLES
from astrofed.shared.physics import CONSTRAINTS, TOLERANCES
from astrofed.shared.physics.budget import MONTH_S
from astrofed.shared.physics.constraints import NotEvaluable, State, evaluate, missing_fields
from astrofed.shared.physics.fixers import CARRIERS, FIXERS, fix, fixer_needs
from astrofed.shared.physics.grid import UnfitGrid
from astrofed.shared.physics.mass import dry_mass

STATIC = ("phis",)  # fields that a world gives with its forcing, not as variables
MAX_SCALE = 1e4  # of a penalty, where hardly a cell is outside its tolerance
MONTH_ATTRIBUTE = "month_s"  # of a cube whose months are not those of MONTH_S


class ConstraintNotEvaluable(UserMistake):
    """A plan puts weight on a physics constraint that its variables can't be checked for."""


class FixerNotEvaluable(UserMistake):
    """A plan asks for a physics fixer that its variables give nothing to go by."""


class PhysicsTerm:
    """What the plan's physics weights add to the training loss.

    Raises:
        UnknownConstraint: a weight's name is no constraint.
        ConstraintNotEvaluable: a constraint with a weight needs variables that the task leaves out.
    """

    def __init__(self, weights: Mapping[str, float], variables: Sequence[str]) -> None:
        for name, weight in weights.items():
            missing = missing_fields(name, (*variables, *STATIC))
            if missing and weight:
                raise ConstraintNotEvaluable(
                    f"physics.weights.{name} = {weight:g} needs the variables {', '.join(missing)}, which "
                    "task.variables leaves out; add them or set the weight to 0"
                )
        self.weights = {name: weight for name, weight in weights.items() if weight}

    def __call__(self, world: World, batch: Batch, predicted: Tensor) -> Tensor:
        """Return Σ weight · penalty over the constraints, a dimensionless scalar; arguments as of `penalties`."""
        total = predicted.new_zeros(())
        for penalty in self.penalties(world, batch, predicted).values():
            total = total + penalty
        return total

    def balanced(self, world: World, batch: Batch, predicted: Tensor, error: Tensor, by: Tensor) -> Tensor:
        """Return Σ weight · penalty with each penalty's gradient by `by` made as long as that of `error`.

        GradNorm's idea (Chen et al. 2018) without parameters of its own: the scale is taken anew on every batch and no
        gradient flows through it. A penalty without a gradient, as within its tolerance, adds nothing to be scaled.
        """
        (own,) = torch.autograd.grad(error, by, retain_graph=True)
        total = predicted.new_zeros(())
        for name, penalty in self.penalties(world, batch, predicted).items():
            (gradient,) = torch.autograd.grad(penalty, by, retain_graph=True)
            length = gradient.norm() / self.weights[name]
            if length > 0:
                total = total + (own.norm() / length).clamp(max=MAX_SCALE) * penalty
        return total

    def penalties(self, world: World, batch: Batch, predicted: Tensor) -> dict[str, Tensor]:
        """Return weight · penalty by constraint (see `Residual.penalty`), each a dimensionless scalar.

        `predicted` is in learned units [batch, variable, climate_time, geological_time, lev, lat, lon].

        Raises:
            UnfitGrid: the world's grid is not global.
        """
        found = {}
        if self.weights:
            state = _batch_state(world, batch, predicted, mass="dry-mass" in self.weights)
            for name, weight in self.weights.items():
                residual = evaluate(name, state)
                if isinstance(residual, NotEvaluable):
                    raise ConstraintNotEvaluable(f"physics.weights.{name}: {residual.constraint} {residual.reason}")
                found[name] = weight * residual.penalty()
        return found


class PhysicsFixers:
    """The plan's fixers on predictions in learned units: after inverse scaling, by variable name.

    Raises:
        UnknownFixer: a name is no fixer.
        FixerNotEvaluable: a fixer needs variables that the task leaves out.
    """

    def __init__(self, names: Sequence[str], variables: Sequence[str]) -> None:
        for name in names:
            missing = fixer_needs(name, (*variables, *STATIC))
            if missing:
                raise FixerNotEvaluable(
                    f"physics.fixers: {name!r} is not evaluable: it needs the variables {', '.join(missing)}, which "
                    "task.variables leaves out; add them or leave the fixer out"
                )
        self.names = tuple(name for name in FIXERS if name in names)
        carriers = {carrier for name in self.names for carrier in CARRIERS[name]}
        self.carriers = {name: index for index, name in enumerate(variables) if name in carriers}

    def __call__(self, world: World, batch: Batch, predicted: Tensor, scales: Scales) -> Tensor:
        """Return predictions [batch, variable, climate_time, geological_time, lev, lat, lon] with carriers corrected.

        One month after the other, so that a budget starts from the corrected month before. What counts as one unit of
        change is the scales' typical change of a month.

        Raises:
            UnfitGrid: the world's grid is not global.
        """
        if not self.names:
            return predicted
        spreads = {name: scales.change[index, 0, 0, :, 0, 0] for name, index in self.carriers.items()}
        months: list[Tensor] = []
        known = None
        for own in torch.split(predicted, 1, dim=2):
            last = months[-1] if months else batch.last
            state = _batch_state(world, batch, own, last, mass="mass" in self.names)
            known = state.dry_mass if known is None else known
            fixed, missed = fix(replace(state, dry_mass=known), self.names, spreads)
            if missed:
                raise FixerNotEvaluable(f"physics.fixers: {missed[0].constraint!r} {missed[0].reason}")
            columns = list(own.unbind(1))
            for name, index in self.carriers.items():
                values = to_learned(fixed.fields[name], name)
                columns[index] = values if VARIABLES[name].levels else values[..., None, :, :].expand_as(columns[index])
            months.append(torch.stack(columns, dim=1))
        return months[0] if len(months) == 1 else torch.cat(months, dim=2)


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
        phis = world.forcing(sample)[GEOPOTENTIAL, scored][None]
        last = world.last(sample)[None, :, :, scored]
        state = _state(world, prediction[None, :, :, scored], last, phis, [epochs])
        for name in CONSTRAINTS:
            residual = evaluate(name, state)
            if not isinstance(residual, NotEvaluable):
                weights = torch.stack((residual.complying_weight, residual.counted_weight, residual.total_weight))
                found.setdefault(name, []).append(weights)
    sums = {name: torch.stack(weights).sum(dim=0).tolist() for name, weights in found.items()}
    return {name: (complying, counted, total) for name, (complying, counted, total) in sums.items()}


def _batch_state(world: World, batch: Batch, predicted: Tensor, last: Tensor | None = None, *, mass: bool) -> State:
    epochs = [sample.epochs for sample in batch.samples]
    before = batch.last if last is None else last
    return _state(world, predicted, before, batch.forcing[:, GEOPOTENTIAL], epochs, mass=mass)


def _state(
    world: World, predicted: Tensor, last: Tensor, phis: Tensor, epochs: Sequence[Sequence[int]], *, mass: bool = True
) -> State:
    """The state of predicted months after a last month, both in learned units with a batch axis in front.

    `phis` [batch, geological_time, lev, lat, lon] is the forcing's surface geopotential, repeated over lev; `mass`:
    whether the last month's dry mass is asked for.
    """
    cube, variables = world.cube, world.layout.variables
    dtype, device = predicted.dtype, predicted.device
    grid = world.grid(dtype, device)
    flux = torch.tensor(np.stack([cube.flux_w_m2[list(each)] for each in epochs]), dtype=dtype, device=device)[:, None]
    static = phis[:, None, :, 0] * GEOPOTENTIAL_UNIT
    first, fields = _in_si(last, variables, static), _in_si(predicted, variables, static)
    known = dry_mass(first["ps"], first["hus"], grid) if mass and {"ps", "hus"} <= first.keys() else None

    def earlier(name: str) -> Tensor:
        alone = name in STATIC or predicted.shape[2] == 1
        return first[name] if alone else torch.cat((first[name], fields[name][:, :-1]), dim=1)

    interval = float(cube.attributes.get(MONTH_ATTRIBUTE, MONTH_S))
    return State(fields, grid, flux, known, _Fields(fields, earlier), interval)


class _Fields(Mapping[str, Tensor]):
    """Fields by name, each made when it is first asked for: few of them are."""

    def __init__(self, names: Sequence[str] | Mapping[str, Tensor], make: Callable[[str], Tensor]) -> None:
        self._names, self._make = tuple(names), make
        self._made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _in_si(learned: Tensor, variables: Sequence[str], phis: Tensor) -> _Fields:
    """SI fields by name, [batch, climate_time, geological_time, lev, lat, lon]; those without levels have no lev.

    A wild prediction of temperature or pressure is kept above 1 K or 1 Pa, where logarithms and quotients are finite.
    """
    columns = dict(zip(variables, learned.unbind(1), strict=True))

    def make(name: str) -> Tensor:
        if name in STATIC:
            return phis
        values = columns[name] if VARIABLES[name].levels else columns[name][..., 0, :, :]
        values = in_si(values, name)
        return values.clamp(min=1.0) if FIELDS[name].positive else values

    return _Fields((*variables, *STATIC), make)
