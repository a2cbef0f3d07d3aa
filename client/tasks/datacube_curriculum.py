"""From easy to hard: a coarser grid in the first rounds, and a horizon that grows from one month to all.

A coarse world is a world: fields are means over 2 x 2 cells weighted by area, and heights follow from its own
temperatures. The network knows no grid size, so that its weights carry over. Fixers hold on any grid; the loss has no
physics in coarse rounds, because tolerances are those of the finer grid: averaged winds comply less with differences
taken over twice the distance (58 % with mass continuity in a month of the earthlike world, above 90 % on its own).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from astrofed.client.data.world import Cube, build_cube
from astrofed.client.tasks.datacube_scales import area_weights
from astrofed.shared.errors import UserMistake


class OddGrid(UserMistake):
    """A plan asks for rounds on a coarser grid of a cube whose grid can't be halved."""


def coarsened(cube: Cube, where: str) -> Cube:
    """Return the cube on half as many latitudes and longitudes; `where` names it in messages.

    Raises:
        OddGrid: it has an odd number of latitudes or longitudes, or too few to be a grid afterwards.
    """
    lat, lon = len(cube.lat_deg), len(cube.lon_deg)
    if lat % 2 or lon % 2 or lat < 8 or lon < 8:
        raise OddGrid(
            f"{where}: task.coarse_rounds needs even numbers of latitudes and longitudes, at least 8; the cube has "
            f"{lat} and {lon}: leave the key out, or regrid the cube"
        )
    weights = area_weights(cube.lat_deg)
    axes: Mapping[str, NDArray[np.float64]] = cube.axes | {
        "lat": cube.lat_deg.reshape(-1, 2).mean(axis=1),
        "lon": cube.lon_deg.reshape(-1, 2).mean(axis=1),
    }
    fields = {name: _halved(values, weights) for name, values in cube.given.items()}
    return build_cube(cube.planet, fields, axes, attributes=cube.attributes, where=where)


def horizon(round_number: int, rounds: int, months: int) -> int:
    """Return how many of the target months a round (from 1) trains on: from one up to all, over `rounds` rounds."""
    if rounds == 0:
        return months
    return min(months, 1 + (round_number - 1) * (months - 1) // rounds)


def _halved(values: NDArray[np.float32], weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """[..., lat, lon] -> [..., lat / 2, lon / 2]."""
    *leading, lat, lon = values.shape
    pairs = values.astype(np.float64).reshape(*leading, lat // 2, 2, lon // 2, 2).mean(axis=-1)
    share = weights.reshape(-1, 2) / weights.reshape(-1, 2).sum(axis=1, keepdims=True)
    return np.asarray((pairs * share[:, :, None]).sum(axis=-2), np.float32)
