"""Roll-outs: a world's months predicted one after the other, each from the predictions before it.

Nothing of the true world enters after the first input months; the season is carried forward from the predicted
sunlight, as in a single prediction. Judged are the error where the truth is known, against persistence; the dry mass
and the energy balance of every month; and whether temperatures stay within what the world's own months span.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from astrofed.client.tasks.datacube_samples import Sample, World
from astrofed.client.tasks.datacube_scales import Scales, to_si
from astrofed.shared.physics.energy import energy_residual
from astrofed.shared.physics.mass import dry_mass

Predict = Callable[[World, Sample], Tensor]
"""Gives a sample's target months [variable, climate_time, geological_time, lev, lat, lon] in learned units."""


@dataclass(frozen=True)
class RollOut:
    """What a roll-out came to, by month; errors until the truth ends."""

    error: tuple[float, ...]  # root mean square in units of a typical month-to-month change
    persistence: tuple[float, ...]  # the same for the last input month
    mass: tuple[float, ...]  # largest relative change of an epoch's dry mass since the last input month
    energy: tuple[float, ...]  # largest |net flux| of an epoch over a quarter of the stellar flux
    finite: bool
    warmest: float  # K, of all predicted air temperatures
    coldest: float

    @property
    def beats_persistence_for(self) -> int:
        """The number of leading months whose error is below persistence's."""
        pairs = zip(self.error, self.persistence, strict=True)
        return next((month for month, (ours, theirs) in enumerate(pairs) if ours >= theirs), len(self.error))


@torch.no_grad()
def roll_out(world: World, predict: Predict, months: int) -> Tensor:
    """Return `months` predicted months [variable, climate_time, geological_time, lev, lat, lon] in learned units.

    They follow the world's first input months, jointly for all epochs.
    """
    before, epochs = world.layout.months_in, tuple(range(world.epochs))
    rolling = copy.copy(world)
    rolling.fields = world.fields[:, :before]
    for month in range(months):
        target = before + month
        following = predict(rolling, Sample(target, epochs, epochs))[:, :1]
        rolling.fields = torch.cat((rolling.fields, following), dim=1)
        rolling.follow_sunlight()
    return rolling.fields[:, before:]


@torch.no_grad()
def judge_rollout(world: World, scales: Scales, predicted: Tensor) -> RollOut:
    """Return how predicted months [variable, climate_time, geological_time, lev, lat, lon] after the first ones fare.

    Needs the variables ta, hus, ps, rst and rlut, and a global grid (UnfitGrid).
    """
    before, variables = world.layout.months_in, world.layout.variables
    last, known = world.fields[:, before - 1 : before], world.months - before
    truth = world.fields[:, before : before + predicted.shape[1]]

    def size(error: Tensor) -> tuple[float, ...]:
        squares = (error / scales.change).double().square() * world.area
        return tuple(squares.mean(dim=(0, 2, 3, 4, 5)).sqrt().tolist())

    grid, si = world.grid(torch.float64), to_si(torch.cat((last, predicted), dim=1)[None].double(), variables)[0]
    field = {name: si[variables.index(name)] for name in ("ta", "hus", "ps", "rst", "rlut")}
    surface = {name: field[name][..., 0, :, :] for name in ("ps", "rst", "rlut")}
    mass = dry_mass(surface["ps"], field["hus"], grid)
    flux = torch.tensor(world.cube.flux_w_m2.copy())
    net = energy_residual(surface["rst"], surface["rlut"], flux, grid)
    return RollOut(
        error=size(predicted[:, :known] - truth),
        persistence=size(last - truth),
        mass=tuple((mass[1:] / mass[:1] - 1).abs().amax(dim=1).tolist()),
        energy=tuple(net[1:].abs().amax(dim=1).tolist()),
        finite=bool(predicted.isfinite().all()),
        warmest=float(field["ta"][1:].max()),
        coldest=float(field["ta"][1:].min()),
    )
