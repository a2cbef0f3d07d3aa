"""Sorting networks: every number of rows is sorted, and the input's values are kept."""

import numpy as np
import pytest

from astrofed.server.aggregation.order import comparators, sort_rows


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
def test_zeros_and_ones_are_sorted_in_every_order(n: int) -> None:
    """A network that sorts all sequences of zeros and ones sorts everything (0-1 principle)."""
    columns = (np.arange(2**n)[None, :] >> np.arange(n)[:, None]) & 1
    rows = columns.astype(np.float64)
    sort_rows(rows)
    assert (rows == np.sort(columns, axis=0)).all()


@pytest.mark.parametrize("n", [17, 31, 64, 100])
def test_many_rows_are_sorted_as_numpy_sorts_them(n: int) -> None:
    rows = np.random.default_rng(n).normal(size=(n, 500))
    expected = np.sort(rows, axis=0)
    sort_rows(rows)
    assert (rows == expected).all()


def test_pairs_point_forward_and_their_number_is_that_of_merge_exchange() -> None:
    """Knuth gives 5, 19 and 63 comparisons for 4, 8 and 16 values."""
    assert [len(comparators(n)) for n in (1, 2, 4, 8, 16)] == [0, 1, 5, 19, 63]
    assert all(i < j for i, j in comparators(100))
