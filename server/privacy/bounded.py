"""A sum of updates to which each participant contributes at most a clipping norm, whatever it sends.

Who sends nothing usable contributes zero; the sum is divided by a number that is fixed before. So one participant moves
the sum by at most the norm, however the others behave.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astrofed.server.aggregation.updates import Updates, flat

Arrays = Mapping[str, NDArray[Any]]
Sums = dict[str, NDArray[np.float64]]
ROUNDING = 1e-9  # float64 lengths and sums are off by less than this share of the norm


def clipped_sum(reference: Arrays, replies: Sequence[Arrays], norm: float) -> tuple[Sums, int]:
    """Return the sum of the replies' changes of the float arrays, each clipped, and how many needed no clipping.

    Args:
        reference: the model that was sent.
        replies: what came back, finite and of the same names and shapes.
        norm: no change counts for more than this Euclidean length over all arrays.
    """
    updates = Updates(reference, replies)
    total: Sums = {name: np.zeros(reference[name].shape) for name in updates.floats}
    unclipped = 0
    for index in range(len(replies)):
        length = math.sqrt(sum(float(np.vdot(block.rows, block.rows)) for block in updates.blocks([index])))
        factor = 1.0 if length <= norm * (1 - ROUNDING) else norm * (1 - ROUNDING) / length
        unclipped += factor == 1.0
        for block in updates.blocks([index]):
            flat(total[block.name], block.columns)[...] += factor * block.rows[0]
    return total, unclipped
