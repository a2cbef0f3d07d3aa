"""The Gram matrix of the updates, from one pass over the data: all that distance-based rules need to know.

Distances are measured directly, so that updates that lie close together and far from where they are measured from lose
no digits, as they do in ||x||^2 + ||y||^2 - 2 x.y. The matrix is about the most central update, chosen by its median
distance to the others so that no minority of liars decides on it.
"""

from typing import TYPE_CHECKING, Optional

import numpy as np

from astrofed.server.aggregation.base import Floats, squared_distances
from astrofed.server.aggregation.updates import Updates

if TYPE_CHECKING:
    from astrofed.server.aggregation.passes_torch import TorchPasses


def gram_matrix(updates: Updates, device: Optional["TorchPasses"] = None) -> Floats:
    """Return the inner products (n, n) of the updates' differences from the most central of them.

    Only what is the same about any point has a meaning: distances, and mixes with weights that sum to 1. Without a
    `device`, compiled code measures them on the CPU.
    """
    return gram_about(squares_between(updates, device))


def squares_between(updates: Updates, device: Optional["TorchPasses"] = None) -> Floats:
    """Return the squared distances (n, n) between the updates."""
    if device is not None:
        return device.distances(updates)
    from astrofed.server.aggregation.passes import distances

    return distances(updates)


def gram_about(squares: Floats, point: int | None = None) -> Floats:
    """Return the inner products (n, n) of differences from a point, by default the most central, from the distances."""
    to_centre = squares[_middle(squares) if point is None else point]
    gram: Floats = (to_centre[:, None] + to_centre[None, :] - squares) / 2
    return gram


def most_central(gram: Floats) -> int:
    """Return the update with the lowest median distance to the others, the first of them where several have it."""
    return _middle(squared_distances(gram))


def _middle(squares: Floats) -> int:
    return int(np.argmin(np.median(squares, axis=1)))
