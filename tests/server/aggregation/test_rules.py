"""Each rule against its paper's definition on cases worked out by hand, and how many replies it asks for."""

import numpy as np
import pytest
from pydantic import ValidationError

from astrofed.server.aggregation.base import Floats, Rule, TooFewReplies
from astrofed.server.aggregation.rules import (
    Krum,
    Mean,
    Median,
    MultiKrum,
    NearestNeighbourMixing,
    TrimmedMean,
    krum_scores,
    largest_f,
)
from astrofed.shared.plan import Section

NONE = Section()
# Seven numbers on a line; f = 2, so scores count the three nearest others.
LINE = np.array([0.0, 1.0, 2.0, 4.0, 7.0, 50.0, -90.0])
SCORES = [0 + 1 + 4 + 16, 1 + 1 + 9, 1 + 4 + 4, 4 + 9 + 9, 9 + 25 + 36, 43**2 + 46**2 + 48**2, 90**2 + 91**2 + 92**2]


def gram_of(values: Floats) -> Floats:
    return np.multiply.outer(values, values)


def equal(n: int) -> Floats:
    return np.full(n, 1 / n)


def test_krum_scores_are_sums_of_squares_to_the_n_minus_f_minus_2_nearest() -> None:
    np.testing.assert_allclose(krum_scores(gram_of(LINE), 2), SCORES)


def test_krum_takes_the_lowest_score() -> None:
    assert Krum(NONE).combine(gram_of(LINE), equal(7), 2).tolist() == [0, 0, 1, 0, 0, 0, 0]


def test_krum_gives_a_tie_to_the_first() -> None:
    values = np.array([9.0, 1.0, 1.0, 1.0, 1.0, 1.0, -7.0])
    assert np.argmax(Krum(NONE).combine(gram_of(values), equal(7), 2)) == 1


def test_krum_needs_more_replies_than_two_liars_that_agree_can_fool() -> None:
    """With n = 5 and f = 2, which needs 7, two identical liars win."""
    values = np.array([0.0, 1.0, 2.0, 100.0, 100.0])
    assert np.argmin(krum_scores(gram_of(values), 2)) == 3
    assert Krum(NONE).minimum_replies(2) == 7


def test_multi_krum_averages_the_n_minus_f_lowest_scores() -> None:
    weights = MultiKrum(MultiKrum.Options()).combine(gram_of(LINE), equal(7), 2)
    np.testing.assert_allclose(weights, [0.2, 0.2, 0.2, 0.2, 0.2, 0, 0])


def test_multi_krum_keeps_as_many_as_it_is_told_and_weighs_them_by_their_shares() -> None:
    shares = np.array([1, 2, 6, 1, 1, 1, 1]) / 13
    weights = MultiKrum(MultiKrum.Options(keep=2)).combine(gram_of(LINE), shares, 2)
    np.testing.assert_allclose(weights, [0, 0.25, 0.75, 0, 0, 0, 0])


def test_multi_krum_with_all_kept_needs_them_all() -> None:
    assert MultiKrum(MultiKrum.Options(keep=9)).minimum_replies(1) == 10
    with pytest.raises(ValidationError):
        MultiKrum.Options(keep=0)


def test_median_of_odd_and_even_numbers() -> None:
    rows = np.array([[3.0, 1.0], [1.0, 2.0], [2.0, 900.0]])
    assert Median(NONE).reduce(rows.copy(), 1).tolist() == [2.0, 2.0]
    assert Median(NONE).reduce(np.vstack([rows, [[4.0, 0.0]]]), 1).tolist() == [2.5, 1.5]


def test_trimmed_mean_drops_f_at_each_end() -> None:
    """29 of 100 are 29: as a share, int(0.29 * 100) is 28."""
    rows = np.arange(100.0)[:, None] ** 2
    assert TrimmedMean(NONE).reduce(rows.copy(), 29)[0] == pytest.approx(np.mean(np.arange(29, 71) ** 2))
    assert TrimmedMean(NONE).reduce(np.array([[1.0], [5.0], [-1e38]]), 1).tolist() == [1.0]
    assert TrimmedMean(NONE).reduce(np.array([[1.0], [5.0]]), 0).tolist() == [3.0]


def test_mixing_means_the_n_minus_f_nearest_and_always_itself() -> None:
    values = np.array([0.0, 1.0, 3.0, 100.0])
    weights = NearestNeighbourMixing(NONE).mix(gram_of(values), 2)
    assert weights.tolist() == [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]]


def test_mixing_keeps_each_update_among_its_own_neighbours_when_several_are_equal() -> None:
    weights = NearestNeighbourMixing(NONE).mix(gram_of(np.zeros(5)), 3)
    assert (np.diag(weights) == 0.5).all()


@pytest.mark.parametrize(
    ("rule", "needs"),
    [
        (Mean(NONE), [1, None, None]),
        (Median(NONE), [1, 3, 5]),
        (TrimmedMean(NONE), [1, 3, 5]),
        (Krum(NONE), [3, 5, 7]),
        (MultiKrum(MultiKrum.Options()), [3, 5, 7]),
        (NearestNeighbourMixing(NONE), [1, 3, 5]),
    ],
)
def test_breakdown_conditions(rule: Rule, needs: list[int | None]) -> None:
    assert [rule.minimum_replies(f) for f in range(3)] == needs


def test_largest_f_is_that_of_the_weakest_stage() -> None:
    assert largest_f([Median(NONE)], 6) == 2
    assert largest_f([NearestNeighbourMixing(NONE), Krum(NONE)], 6) == 1
    assert largest_f([Mean(NONE)], 6) == 0
    assert largest_f([Krum(NONE)], 2) is None


def test_scores_without_neighbours_are_refused() -> None:
    with pytest.raises(TooFewReplies, match="at least f \\+ 3 = 4"):
        krum_scores(gram_of(np.arange(3.0)), 1)
