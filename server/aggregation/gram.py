"""The Gram matrix of the updates, in one pass over column blocks: all that distance-based rules need to know.

Distances from a Gram matrix, ||x||^2 + ||y||^2 - 2 x.y, lose digits when the updates lie close together and far from
where they are measured from. Measured from the global model that is rare; where it happens, a second pass measures from
the most central update, chosen by its median distance to the others so that no minority of liars decides on it.
"""

from collections.abc import Callable

import numpy as np

from astrofed.server.aggregation.base import Floats, squared_distances
from astrofed.server.aggregation.updates import Updates

CLOSE = 1e-6  # squared spread over squared offset; leaves distances a relative error of about 1e-9


def gram_matrix(updates: Updates) -> Floats:
    """Return the inner products (n, n) of the updates about the global model, or about one if they lie together.

    Only what is the same about any point has a meaning: distances, and mixes with weights that sum to 1.
    """
    gram = _accumulate(updates, lambda rows: rows)
    distances = squared_distances(gram)
    reach = np.median(distances, axis=1)
    centre = int(np.argmin(reach))
    if reach[centre] < CLOSE * gram[centre, centre]:
        gram = _accumulate(updates, lambda rows: rows - rows[centre])
    return gram


def _accumulate(updates: Updates, shift: Callable[[Floats], Floats]) -> Floats:
    n = len(updates.replies)
    gram = np.zeros((n, n))
    for block in updates.blocks(range(n)):
        rows = shift(block.rows)
        gram += rows @ rows.T
    return gram
