"""What a datacube network has to beat: persistence, the site's own climatology, and a federated pointwise ridge.

The ridge (Hoerl and Kennard 1970) regresses each level's changes on the same cell's variables in the input months. It
is fitted in closed form from normal equations that the sites add up, so that it sees exactly what the network may see.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from astrofed.client.tasks.datacube_samples import Sample, World
from astrofed.client.tasks.datacube_scales import area_weights
from astrofed.shared.models.datacube_layout import VARIABLES
from numpy.typing import NDArray
from torch import Tensor

GRAM, CROSS = "mean:ridge/gram", "mean:ridge/cross"
PENALTY = 1e-3  # on standardised coefficients, for a mean squared error


def ridge_equations(world: World, samples: Sequence[Sample]) -> dict[str, NDArray[np.float64]]:
    """Return a site's normal equations, area-weighted, a mean over cells and samples so that all sites count alike.

    Keys: GRAM [lev, feature, feature] and CROSS [lev, feature, variable · months_out]; the last feature is constant.
    """
    area = area_weights(world.cube.lat_deg).astype(np.float32)[:, None]
    gram: NDArray[np.float64] | float = 0.0
    cross: NDArray[np.float64] | float = 0.0
    cells = 0.0
    for sample in samples:
        features = _features(world, sample)
        changes = _nominal_changes(world, sample)
        shape = (*features.shape[:3], *world.cube.fields["ta"].shape[-2:])
        weighted = (features.reshape(shape) * area).reshape(features.shape)
        gram = gram + np.matmul(weighted, features.transpose(0, 1, 3, 2)).sum(axis=0, dtype=np.float64)
        cross = cross + np.matmul(weighted, changes.transpose(0, 1, 3, 2)).sum(axis=0, dtype=np.float64)
        cells += features.shape[0] * features.shape[3]
    return {GRAM: np.asarray(gram) / cells, CROSS: np.asarray(cross) / cells}


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


def ridge(world: World, sample: Sample, coefficients: NDArray[np.float64]) -> Tensor:
    """Return the ridge's prediction in learned units [variable, climate_time, geological_time, lev, lat, lon]."""
    features = _features(world, sample)
    weights = coefficients.astype(np.float32).transpose(0, 2, 1)
    last, layout = world.last(sample), world.layout
    shape = (*features.shape[:2], len(layout.variables), layout.months_out, *last.shape[-2:])
    changes = torch.from_numpy(np.matmul(weights, features).reshape(shape)).permute(2, 3, 0, 1, 4, 5)
    flat = torch.tensor([not VARIABLES[name].levels for name in world.layout.variables])
    changes = torch.where(flat[:, None, None, None, None, None], changes.mean(dim=3, keepdim=True), changes)
    return last + changes * torch.from_numpy(_spreads(world))[:, None, None, None, None, None]


def persistence(world: World, sample: Sample) -> Tensor:
    """Return the last input month for every target month, in learned units."""
    return world.last(sample).expand(-1, world.layout.months_out, -1, -1, -1, -1)


def climatology(world: World, sample: Sample) -> Tensor:
    """Return the mean of the same calendar months in the site's other epochs, in learned units, for every epoch."""
    months = world.fields[:, sample.target : sample.target + world.layout.months_out]
    total = months.sum(dim=2, keepdim=True)
    others: Tensor = (total - months) / (world.epochs - 1)
    return others[:, :, list(sample.epochs)]


def pooled_ridge(statistics: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64] | None:
    """Return the ridge's coefficients, or None where the pooled statistics hold no normal equations."""
    if GRAM not in statistics or CROSS not in statistics:
        return None
    return ridge_coefficients(statistics[GRAM], statistics[CROSS])


def _spreads(world: World) -> NDArray[np.float32]:
    return np.array([VARIABLES[name].spread for name in world.layout.variables], np.float32)


def _features(world: World, sample: Sample) -> NDArray[np.float32]:
    """Return [geological_time, lev, feature, cell]: the input months by round offsets and spreads, and a constant."""
    span = slice(sample.target - world.layout.months_in, sample.target)
    months = world.fields[:, span][:, :, list(sample.epochs)].numpy()
    offsets = np.array([VARIABLES[name].offset for name in world.layout.variables], np.float32)
    scaled = (months - offsets[:, None, None, None, None, None]) / _spreads(world)[:, None, None, None, None, None]
    variables, inputs, epochs, levels, lat, lon = scaled.shape
    table = scaled.transpose(2, 3, 0, 1, 4, 5).reshape(epochs, levels, variables * inputs, lat * lon)
    return np.concatenate((table, np.ones((epochs, levels, 1, lat * lon), np.float32)), axis=2)


def _nominal_changes(world: World, sample: Sample) -> NDArray[np.float32]:
    """Return [geological_time, lev, variable · months_out, cell] in round spreads."""
    changes = (world.targets(sample) - world.last(sample)).numpy()
    scaled = changes / _spreads(world)[:, None, None, None, None, None]
    variables, out, epochs, levels, lat, lon = scaled.shape
    table = np.ascontiguousarray(scaled.transpose(2, 3, 0, 1, 4, 5), np.float32)
    return table.reshape(epochs, levels, variables * out, lat * lon)
