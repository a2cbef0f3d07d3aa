"""How far predictions are off: area-weighted, by variable and level, in SI and as one dimensionless number."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from astrofed.client.tasks.datacube_samples import Sample, World
from astrofed.client.tasks.datacube_scales import Scales, to_si
from astrofed.shared.models.datacube_layout import VARIABLES


@dataclass
class Scores:
    """Adds up squared errors over samples; all samples count alike."""

    variables: Sequence[str]
    area: Tensor  # [lat, 1], mean 1
    scales: Scales
    _relative: list[Tensor] = field(default_factory=list)
    _physical: list[Tensor] = field(default_factory=list)

    def add(self, prediction: Tensor, truth: Tensor, scored: Sequence[int]) -> None:
        """Score a sample's epochs `scored`: tensors in learned units [variable, climate_time, epoch, lev, lat, lon]."""
        prediction, truth = prediction[:, :, list(scored)], truth[:, :, list(scored)]
        self._relative.append(self._mean_square((prediction - truth) / self.scales.change))
        physical = to_si(torch.stack((prediction, truth)), self.variables)
        self._physical.append(self._mean_square(physical[0] - physical[1]))

    def headline(self) -> float:
        """Return the root mean square error over variables and levels in units of a typical month-to-month change."""
        return float(torch.stack(self._relative).mean().sqrt())

    def physical(self, *, levels: bool) -> dict[str, float]:
        """Return RMSE in SI by variable and, where it has them and `levels` asks for it, by variable/level index."""
        squares = torch.stack(self._physical).mean(dim=0)
        found = {}
        for row, name in zip(squares, self.variables, strict=True):
            found[name] = float(row.mean().sqrt())
            if levels and VARIABLES[name].levels:
                found |= {f"{name}/{index}": float(value.sqrt()) for index, value in enumerate(row)}
        return found

    def _mean_square(self, error: Tensor) -> Tensor:
        """[variable, climate_time, epoch, lev, lat, lon] -> [variable, lev], in double precision."""
        return (error.double().square() * self.area).mean(dim=(1, 2, 4, 5))


def score(
    world: World, scales: Scales, samples: Sequence[Sample], predictions: Sequence[Tensor], *, prefix: str, levels: bool
) -> dict[str, float]:
    """Return "loss" (`Scores.headline`) and "rmse/…" in SI of predictions, one a sample; `prefix` before each key."""
    scores = Scores(world.layout.variables, world.area, scales)
    for sample, prediction in zip(samples, predictions, strict=True):
        scores.add(prediction, world.targets(sample), sample.scored)
    physical = scores.physical(levels=levels)
    return {f"{prefix}loss": scores.headline(), **{f"{prefix}rmse/{name}": v for name, v in physical.items()}}


def area_loss(error: Tensor, area: Tensor) -> Tensor:
    """Return the mean over everything of squared errors weighted by cell area [lat, 1]."""
    return (error.square() * area).mean()
