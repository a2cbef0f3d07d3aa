"""Rules that take each coordinate by itself: median, trimmed mean, mean around the median, and Bulyan's second half.

Each states its paper, its equation, and how many replies n it needs to withstand f liars. Updates are x_1 … x_n.
"""

import numpy as np

from astrofed.server.aggregation.base import Coordinatewise, Floats, MeanAroundMedian, MeanOfRanks, Mixing
from astrofed.server.aggregation.order import sort_rows
from astrofed.server.aggregation.rules_selection import BulyanSelection


class Median(Coordinatewise):
    """Median of each coordinate; for an even number of updates the mean of the two middle values.

    Yin et al. (2018), "Byzantine-robust distributed learning: towards optimal statistical rates", ICML, definition 1.
    """

    def minimum_replies(self, f: int) -> int | None:
        """Return 2f + 1: the middle must lie among the honest."""
        return 2 * f + 1

    def reduction(self, n: int, f: int) -> MeanOfRanks:
        """Return the one or two middle ranks."""
        return MeanOfRanks((n - 1) // 2, n // 2 + 1)

    def reduce(self, rows: Floats, f: int) -> Floats:
        """Return the median of each column."""
        return _mean_of_ranks(rows, self.reduction(len(rows), f))


class TrimmedMean(Coordinatewise):
    """Mean of each coordinate without its f smallest and f largest values.

    Yin et al. (2018), as for the median, definition 2, with the number of trimmed values given as the integer f.
    """

    def minimum_replies(self, f: int) -> int | None:
        """Return 2f + 1: one value must remain."""
        return 2 * f + 1

    def reduction(self, n: int, f: int) -> MeanOfRanks:
        """Return the n - 2f middle ranks."""
        return MeanOfRanks(f, n - f)

    def reduce(self, rows: Floats, f: int) -> Floats:
        """Return the mean of each column's n - 2f middle values."""
        return _mean_of_ranks(rows, self.reduction(len(rows), f))


class MeanNearMedian(Coordinatewise):
    """Mean of the n - f values of each coordinate that lie nearest to its median.

    Xie et al. (2018), "Generalized Byzantine-tolerant SGD", arXiv:1802.10116, definition 5, "mean around median".
    """

    def minimum_replies(self, f: int) -> int | None:
        """Return 2f + 1: the median must lie among the honest."""
        return 2 * f + 1

    def reduction(self, n: int, f: int) -> MeanAroundMedian:
        """Return the n - f values around the median."""
        return MeanAroundMedian(n - f)

    def reduce(self, rows: Floats, f: int) -> Floats:
        """Return the mean of each column's n - f values nearest to its median."""
        return mean_around_median(rows, len(rows) - f)


class Bulyan(Coordinatewise):
    """Mean around the median of the n - 2f updates that Krum selects one after the other.

    El Mhamdi et al. (2018), "The hidden vulnerability of distributed learning in Byzantium", ICML, section 4: of the
    theta = n - 2f selected updates, each coordinate takes the mean of the theta - 2f values nearest to their median.
    """

    def minimum_replies(self, f: int) -> int | None:
        """Return 2f + 3 of the selected, which are 4f + 3 replies (proposition 2)."""
        return 2 * f + 3

    def before(self) -> tuple[Mixing, ...]:
        """Return the selection."""
        return (BulyanSelection(self.options),)

    def reduction(self, n: int, f: int) -> MeanAroundMedian:
        """Return the n - 2f values, of n selected ones, around the median."""
        return MeanAroundMedian(n - 2 * f)

    def reduce(self, rows: Floats, f: int) -> Floats:
        """Return the mean of the values nearest to the median of each column of selected updates."""
        return mean_around_median(rows, len(rows) - 2 * f)


def mean_around_median(rows: Floats, keep: int) -> Floats:
    """Return the mean (columns,) of the `keep` values of each column nearest to its median; sorts `rows` in place.

    Sorted, they are neighbours: the window starts at rank 0 and moves up while the value that would come in lies nearer
    than the one that would go. Of equally near ones the smaller stays.
    """
    sort_rows(rows)
    n = len(rows)
    median = (rows[(n - 1) // 2] + rows[n // 2]) / 2
    first = np.zeros(rows.shape[1], np.intp)
    for rank in range(n - keep):
        first += rows[rank + keep] - median < median - rows[rank]
    total = np.zeros(rows.shape[1])
    for rank, row in enumerate(rows):
        np.add(total, row, out=total, where=(first <= rank) & (rank < first + keep))
    total /= keep
    return total


def _mean_of_ranks(rows: Floats, ranks: MeanOfRanks) -> Floats:
    sort_rows(rows)
    total: Floats = rows[ranks.first].copy()
    for row in rows[ranks.first + 1 : ranks.stop]:
        total += row
    total /= ranks.stop - ranks.first
    return total
