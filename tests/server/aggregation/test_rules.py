"""Each rule against its paper's definition on cases worked out by hand, and how many replies it asks for."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from astrofed.server.aggregation.base import Floats, Rule, TooFewReplies, largest_f, minimum_replies
from astrofed.server.aggregation.rules_centre import CentredClipping, GeometricMedian, Mean, TrustedReference
from astrofed.server.aggregation.rules_coordinate import (
    Bulyan,
    MeanNearMedian,
    Median,
    TrimmedMean,
    mean_around_median,
)
from astrofed.server.aggregation.rules_mixing import AdaptiveClip, Bucketing, Clip, NearestNeighbourMixing
from astrofed.server.aggregation.rules_selection import (
    BulyanSelection,
    Krum,
    MinimumDiameter,
    MultiKrum,
    krum_scores,
    smallest_set,
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
        (MeanNearMedian(NONE), [1, 3, 5]),
        (GeometricMedian(NONE), [1, 3, 5]),
        (CentredClipping(CentredClipping.Options()), [1, 3, 5]),
        (MinimumDiameter(NONE), [1, 3, 5]),
        (TrustedReference(TrustedReference.Options(reference="a")), [1, 2, 3]),
        (NearestNeighbourMixing(NONE), [1, 3, 5]),
        (AdaptiveClip(NONE), [1, 3, 5]),
        (Clip(Clip.Options(clip_norm=1)), [1, 1, 1]),
    ],
)
def test_breakdown_conditions(rule: Rule, needs: list[int | None]) -> None:
    assert [rule.minimum_replies(f) for f in range(3)] == needs


def test_largest_f_is_that_of_the_weakest_stage() -> None:
    assert largest_f([Median(NONE)], 6) == 2
    assert largest_f([NearestNeighbourMixing(NONE), Krum(NONE)], 6) == 1
    assert largest_f([Mean(NONE)], 6) == 0
    assert largest_f([Krum(NONE)], 2) is None


def test_stages_that_merge_updates_ask_for_as_many_more() -> None:
    """Bulyan selects n - 2f; of n updates bucketing leaves half, and Krum needs 2f + 3 of those."""
    bulyan = Bulyan(NONE)
    assert [minimum_replies([*bulyan.before(), bulyan], f) for f in range(4)] == [3, 7, 11, 15]
    buckets = Bucketing(Bucketing.Options())
    assert minimum_replies([buckets, Krum(NONE)], 2) == 13
    assert len(buckets.mix(np.eye(13), 2)) == 7 and len(buckets.mix(np.eye(12), 2)) == 6
    assert largest_f([buckets, Krum(NONE)], 12) == 1
    assert minimum_replies([NearestNeighbourMixing(NONE), Mean(NONE)], 1) is None


def vectors_gram(vectors: list[list[float]]) -> Floats:
    return np.asarray(np.array(vectors) @ np.array(vectors).T)


def test_bulyan_selects_one_after_the_other() -> None:
    """f = 1, seven numbers. Krum's order on all seven at once would be another: 4 comes before 7 only iteratively."""
    rows = BulyanSelection(NONE).mix(gram_of(LINE), 1)
    assert rows.shape == (5, 7) and (rows.sum(axis=1) == 1).all() and rows.max(axis=0).sum() == 5
    remaining, expected = list(range(7)), []
    for _ in range(5):
        scores = {}
        for i in remaining:
            near = sorted((LINE[i] - LINE[j]) ** 2 for j in remaining if j != i)
            scores[i] = sum(near[: max(1, len(remaining) - 3)]), sum(near)
        expected.append(min(scores, key=lambda i: scores[i]))
        remaining.remove(expected[-1])
    assert np.argmax(rows, axis=1).tolist() == expected


def test_mean_around_median_by_hand() -> None:
    rows = np.array([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0], [90.0, 5.0], [-7.0, 1e38]])
    assert mean_around_median(rows.copy(), 3).tolist() == [pytest.approx(7 / 3), 5.0]
    assert MeanNearMedian(NONE).reduce(rows.copy(), 2).tolist() == [pytest.approx(7 / 3), 5.0]
    assert mean_around_median(np.array([[0.0], [1.0], [2.0]]), 2).tolist() == [0.5], "of equally near, the smaller"
    assert Bulyan(NONE).reduce(rows.copy(), 2).tolist() == [2.0, 5.0]


@pytest.mark.parametrize("seed", range(5))
def test_the_smallest_diameter_is_that_of_all_subsets(seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(11, 3))
    distances = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    for f in (0, 1, 4, 5):
        best = min(distances[np.ix_(s, s)].max() for s in map(list, combinations(range(11), 11 - f)))
        kept = smallest_set(distances, f)
        assert len(set(kept.tolist())) == 11 - f and distances[np.ix_(kept, kept)].max() == best


def test_minimum_diameter_is_found_among_many_and_refused_where_it_would_take_too_long() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(88, 4)), 30 + rng.normal(size=(12, 4))])
    weights = MinimumDiameter(NONE).combine(points @ points.T, equal(100), 12)
    np.testing.assert_allclose(weights, [1 / 88] * 88 + [0] * 12)
    assert MinimumDiameter(NONE).minimum_replies(13) is None


def test_the_geometric_median_of_a_line_is_its_median_and_of_a_star_its_middle() -> None:
    weights = GeometricMedian(NONE).combine(gram_of(LINE), equal(7), 2)
    assert weights @ LINE == pytest.approx(2.0, abs=1e-4)
    star = [[0.0, 0.0], [1.0, 0.0], [-0.5, 0.8], [-0.5, -0.9], [0.1, 1e30]]
    found = GeometricMedian(NONE).combine(vectors_gram(star), equal(5), 2) @ np.array(star)
    assert np.linalg.norm(found) < 1.0
    shares = np.array([0.0, 0.9, 0.1, 0.0, 0.0])
    np.testing.assert_allclose(GeometricMedian(NONE).combine(vectors_gram(star), shares, 2)[1], 1.0, atol=1e-5)
    same = GeometricMedian(NONE).combine(gram_of(np.array([3.0, 3.0, 3.0, 9.0])), equal(4), 1)
    np.testing.assert_allclose(same, [1 / 3, 1 / 3, 1 / 3, 0])


def test_centred_clipping_by_hand() -> None:
    """From the model at 0 with radius 1: (0.5 - 1 + 1) / 3, then from there."""
    values = np.array([0.5, -3.0, 1e30, 0.0])  # the last: no step before
    one = CentredClipping(CentredClipping.Options(tau=1, iterations=1)).combine(gram_of(values), equal(3), 1)
    assert one @ values == pytest.approx(0.5 / 3)
    v = 0.5 / 3
    two = CentredClipping(CentredClipping.Options(tau=1, iterations=2)).combine(gram_of(values), equal(3), 1)
    assert two @ values == pytest.approx(v + (0.5 - v) / 3)


def test_centred_clipping_starts_from_the_last_step_unless_told_otherwise() -> None:
    values = np.array([4.0, 6.0, 8.0, 5.0])
    options: dict[str, Any] = {"tau": 1, "iterations": 1}
    carried = CentredClipping(CentredClipping.Options(**options))
    assert carried.combine(gram_of(values), equal(3), 1) @ values == pytest.approx(5 + (-1 + 1 + 1) / 3)
    fresh = CentredClipping(CentredClipping.Options(**options, start="model"))
    assert (carried.start, fresh.start) == ("last-step", "model")


def test_an_automatic_radius_follows_the_scale_and_agreement_is_reached_at_once() -> None:
    rule = CentredClipping(CentredClipping.Options())
    values = np.array([2.0, 2.0, 2.0, 2.0, 1e38, 0.7])
    assert rule.combine(gram_of(values), equal(5), 1) @ values == pytest.approx(2.0, abs=0.3)
    same = np.array([2.0, 2.0, 2.0, 0.7])
    assert rule.combine(gram_of(same), equal(3), 1) @ same == pytest.approx(2.0, rel=1e-14)


def test_trust_is_the_cosine_with_the_reference_and_lengths_are_its_own() -> None:
    vectors = [[2.0, 0.0], [5.0, 5.0], [-9.0, 0.0], [0.0, 0.0]]
    rule = TrustedReference(TrustedReference.Options(reference="a"))
    weights = rule.combine(vectors_gram(vectors), np.array([1.0, 0, 0, 0]), 2)
    trust = np.sqrt(0.5)
    assert weights[2] == weights[3] == 0
    expected = (np.array([2.0, 0]) + trust * np.array([5.0, 5.0]) * 2 / np.sqrt(50)) / (1 + trust)
    np.testing.assert_allclose(weights @ np.array(vectors), expected)
    assert rule.combine(vectors_gram(vectors), np.array([0, 0, 0, 1.0]), 2).tolist() == [0, 0, 0, 0]


def test_clipping_shortens_to_the_bound_and_leaves_shorter_ones_alone() -> None:
    gram = vectors_gram([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    assert np.diag(Clip(Clip.Options(clip_norm=1)).mix(gram, 1)).tolist() == [0.2, 1.0, 1.0]


def test_adaptive_clipping_shortens_the_k_longest_to_the_next() -> None:
    """n = 17, f = 4: k = floor(8 * 13 / 17) = 6."""
    lengths = np.arange(1.0, 18)
    factors = np.diag(AdaptiveClip(NONE).mix(np.diag(lengths**2), 4))
    np.testing.assert_allclose(factors * lengths, np.minimum(lengths, 11.0))
    assert (AdaptiveClip(NONE).mix(np.diag(lengths**2), 0) == np.eye(17)).all()


def test_buckets_hold_each_update_once_in_an_order_that_the_seed_draws() -> None:
    rule = Bucketing(Bucketing.Options(bucket_size=3))
    weights = rule.seeded(1).mix(np.eye(7), 1)
    assert weights.shape == (3, 7) and ((weights > 0).sum(axis=0) == 1).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert (weights == rule.seeded(1).mix(np.eye(7), 1)).all() and (weights != rule.seeded(2).mix(np.eye(7), 1)).any()


def test_scores_without_neighbours_are_refused() -> None:
    with pytest.raises(TooFewReplies, match="at least f \\+ 3 = 4"):
        krum_scores(gram_of(np.arange(3.0)), 1)
