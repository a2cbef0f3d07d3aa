"""Order statistics of many columns at once: a sorting network over rows, each comparison one vector operation.

Batcher's merge exchange (K. E. Batcher, "Sorting networks and their applications", AFIPS 1968; Knuth, TAOCP 3, 5.2.2,
Algorithm M) sorts any number of rows with O(n log^2 n) comparisons that don't depend on the data.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from astrofed.server.aggregation.base import Floats, MeanAroundMedian, MeanOfRanks


@lru_cache(maxsize=64)
def comparators(n: int) -> tuple[tuple[int, int], ...]:
    """Return the pairs (i, j), i < j, of rows to compare and exchange, in order, to sort n rows."""
    pairs = []
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top if n > 1 else 0
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    return tuple(pairs)


@lru_cache(maxsize=64)
def network(n: int, reduction: MeanOfRanks | MeanAroundMedian) -> NDArray[np.int64]:
    """Return the comparators (m, 2) that a reduction of n rows needs, in order.

    Going back from the end, a comparator may go if neither of its rows is used after it, or if both only enter the same
    mean, whose sum an exchange doesn't change.
    """
    unused, summed, needed = range(3)
    if isinstance(reduction, MeanAroundMedian):
        rows = [needed] * n
    else:
        rows = [summed if reduction.first <= rank < reduction.stop else unused for rank in range(n)]
    kept = []
    for i, j in reversed(comparators(n)):
        if rows[i] == rows[j] != needed:
            continue
        kept.append((i, j))
        rows[i] = rows[j] = needed
    return np.array(kept[::-1], np.int64).reshape(-1, 2)


def sort_rows(rows: Floats) -> None:
    """Sort each column of `rows` (n, columns) in place, smallest first; all values are finite."""
    smaller = np.empty(rows.shape[1])
    for i, j in comparators(len(rows)):
        np.minimum(rows[i], rows[j], out=smaller)
        np.maximum(rows[i], rows[j], out=rows[j])
        rows[i] = smaller
