"""What a datacube network has to beat: persistence, the site's own climatology, and a federated pointwise ridge.

The ridge (Hoerl and Kennard 1970) regresses each level's changes on the same cell's variables in the input months. It
is fitted in closed form from normal equations that the sites add up, over the months that the network trains on.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astrofed.client.tasks.datacube_samples import Sample, World
from astrofed.shared.models.datacube_layout import VARIABLES

GRAM, CROSS = "mean:ridge/gram", "mean:ridge/cross"
PENALTY = 1e-3  # on standardised coefficients, for a mean squared error


def known_baselines(
    world: World, statistics: Mapping[str, NDArray[np.float64]], *, own_climate: bool
) -> dict[str, Callable[[World, Sample], Tensor]]:
    """Return the baselines that can be evaluated for a world, by name; its own climatology only with `own_climate`."""
    found: dict[str, Callable[[World, Sample], Tensor]] = {"persistence": persistence}
    if own_climate and world.epochs > 1:
        found["climatology"] = climatology
    coefficients = pooled_ridge(statistics)
    if coefficients is not None:
        found["ridge"] = lambda world, sample: ridge(world, sample, coefficients)
    return found


def persistence(world: World, sample: Sample) -> Tensor:
    """Return the last input month for every target month, in learned units."""
    return world.last(sample).expand(-1, world.layout.months_out, -1, -1, -1, -1)


def climatology(world: World, sample: Sample) -> Tensor:
    """Return the mean of the same calendar months in the site's other epochs, in learned units, for every epoch."""
    months = world.fields[:, sample.target : sample.target + world.layout.months_out]
    total = months.sum(dim=2, keepdim=True)
    others: Tensor = (total - months) / (world.epochs - 1)
    return others[:, :, list(sample.epochs)]


def ridge(world: World, sample: Sample, coefficients: NDArray[np.float64]) -> Tensor:
    """Return the ridge's prediction in learned units [variable, climate_time, geological_time, lev, lat, lon]."""
    weights = torch.from_numpy(coefficients.astype(np.float32)).mT
    last, layout = world.last(sample), world.layout
    changes = torch.matmul(weights, _features(world, sample))  # [geological_time, lev, variable · months_out, cell]
    shape = (*changes.shape[:2], len(layout.variables), layout.months_out, *last.shape[-2:])
    changes = changes.reshape(shape).permute(2, 3, 0, 1, 4, 5)
    return last + layout.level_means(changes) * _nominal(world, "spread")


def ridge_equations(world: World, samples: Sequence[Sample]) -> dict[str, NDArray[np.float64]]:
    """Return a site's normal equations, area-weighted, a mean over cells and samples so that all sites count alike.

    Keys: GRAM [lev, feature, feature] and CROSS [lev, feature, variable · months_out]; the last feature is constant.
    """
    area = world.area.expand(world.fields.shape[-2:]).flatten()
    grams, crosses, count = [], [], 0
    for sample in samples:
        features = _features(world, sample)
        weighted = features * area
        grams.append(torch.matmul(weighted, features.mT).double().sum(dim=0))
        crosses.append(torch.matmul(weighted, _changes(world, sample).mT).double().sum(dim=0))
        count += features.shape[0] * features.shape[3]
    return {
        GRAM: (torch.stack(grams).sum(dim=0) / count).numpy(),
        CROSS: (torch.stack(crosses).sum(dim=0) / count).numpy(),
    }


def pooled_ridge(statistics: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64] | None:
    """Return the ridge's coefficients, or None where the pooled statistics hold no normal equations."""
    if GRAM not in statistics or CROSS not in statistics:
        return None
    return ridge_coefficients(statistics[GRAM], statistics[CROSS])


def ridge_coefficients(gram: NDArray[np.float64], cross: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve the pooled normal equations; return [lev, feature, variable · months_out], the constant last."""
    count = gram[:, -1, -1][:, None, None]
    mean_x, mean_y = gram[:, :-1, -1:] / count, cross[:, -1:, :] / count
    covariance = gram[:, :-1, :-1] / count - mean_x @ mean_x.transpose(0, 2, 1)
    spread = np.sqrt(np.maximum(np.diagonal(covariance, axis1=1, axis2=2), 1e-12))[..., None]
    correlation = covariance / spread / spread.transpose(0, 2, 1)
    projected = (cross[:, :-1] / count - mean_x @ mean_y) / spread
    slopes = np.linalg.solve(correlation + PENALTY * np.eye(correlation.shape[1]), projected) / spread
    intercept = mean_y - mean_x.transpose(0, 2, 1) @ slopes
    return np.concatenate((slopes, intercept), axis=1)


def _features(world: World, sample: Sample) -> Tensor:
    """Return [geological_time, lev, feature, cell]: the input months by round offsets and spreads, and a constant."""
    table = _table((world.past(sample) - _nominal(world, "offset")) / _nominal(world, "spread"))
    return torch.cat((table, torch.ones_like(table[:, :, :1])), dim=2)


def _changes(world: World, sample: Sample) -> Tensor:
    """Return [geological_time, lev, variable · months_out, cell] in round spreads."""
    return _table((world.targets(sample) - world.last(sample)) / _nominal(world, "spread"))


def _table(fields: Tensor) -> Tensor:
    """[variable, climate_time, geological_time, lev, lat, lon] -> [geological_time, lev, variable · time, cell]."""
    return fields.permute(2, 3, 0, 1, 4, 5).flatten(4).flatten(2, 3)


def _nominal(world: World, attribute: str) -> Tensor:
    values = [getattr(VARIABLES[name], attribute) for name in world.layout.variables]
    return torch.tensor(values)[:, None, None, None, None, None]
