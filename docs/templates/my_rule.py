"""A rule of your own, on one coordinate each. Test it: astrofed plugins --plugin docs/templates/my_rule.py --test"""

import numpy as np

from astrofed.server.aggregation.base import Coordinatewise, Floats


class Midhinge(Coordinatewise):
    """The middle between the lower and the upper quartile of each coordinate."""

    def minimum_replies(self, f: int) -> int | None:
        """Return 4f + 1: both quartiles then lie among honest values."""
        return 4 * f + 1

    def reduce(self, rows: Floats, f: int) -> Floats:
        """Return one value (columns,) for each column of `rows` (n, columns)."""
        lower, upper = np.quantile(rows, (0.25, 0.75), axis=0)
        return np.asarray((lower + upper) / 2)
