"""Shares of the model by numbers of examples, and a cap on what one participant may have of it."""

import numpy as np

from astrofed.server.aggregation.base import Floats


def capped(shares: Floats, cap: float | None) -> Floats:
    """Return shares (n,) with none above `cap`; what is cut off goes to the others in proportion to their own.

    A cap below 1 / n makes all equal. `shares` sum to 1, and so does the result.
    """
    if cap is None:
        return shares
    if cap * len(shares) <= 1:
        return np.full(len(shares), 1.0 / len(shares))
    result = shares.copy()
    held = np.zeros(len(shares), bool)
    while (over := (result > cap) & ~held).any():
        held |= over
        free = ~held
        if not result[free].sum() > 0:  # the others have nothing in proportion to which to take
            result[free] = 1.0
        result[free] *= (1 - cap * held.sum()) / result[free].sum()
        result[held] = cap
    return result
