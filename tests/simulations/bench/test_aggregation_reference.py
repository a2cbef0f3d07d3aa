"""The float64 references of the aggregation bench: right where the answer is known, and the measure that rules pass."""

import numpy as np
import pytest

from astrofed.simulations.bench.aggregation_reference import (
    COMPARED,
    expected_weights,
    largest_deviation,
    update_gram,
)
from astrofed.simulations.bench.aggregation_work import CASES, KINDS, NAME, Case, Kind, Replies

LINE = np.array([0.25, 1.0, 2.0, 10.0, 3.0, 2.5, 100.0])  # seven updates of one value


def on_the_line(rule: str, *pre: str, f: int = 1) -> np.ndarray:
    return expected_weights(np.outer(LINE, LINE), pre, rule, f, clip_norm=5.0) @ LINE


def test_rules_on_a_line() -> None:
    """Krum counts 4 neighbours: 2 and 2.5 lie closest, with 0.25, 1 and 3; sums 5.31 and 7.81. NNM means six."""
    assert on_the_line("mean") == pytest.approx(LINE.mean())
    assert on_the_line("krum") == pytest.approx(2.0)
    assert on_the_line("multi-krum") == pytest.approx(np.delete(LINE, 6).mean())
    assert on_the_line("bulyan").tolist() == [2.0, 1.0, 2.5, 3.0, 10.0]  # a tie goes to the more central
    assert on_the_line("trimmed-mean", "clip").max() == 5.0
    assert on_the_line("trimmed-mean", "arc").max() == 10.0  # one is shortened: floor(2 * 1 * 6 / 7)
    np.testing.assert_allclose(on_the_line("trimmed-mean", "nnm")[:3], np.delete(LINE, 6).mean())
    assert len(on_the_line("trimmed-mean", "bucketing")) == 4
    assert on_the_line("trimmed-mean", "bucketing") @ [2, 2, 2, 1] == pytest.approx(LINE.sum())


def test_the_geometric_median_of_a_square_and_a_far_point_is_where_directions_cancel() -> None:
    points = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1], [50, 0]])
    weights = expected_weights(points @ points.T, (), "geometric-median", 1)[0]
    directions = points - weights @ points
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    np.testing.assert_allclose(directions.sum(axis=0), 0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_rule_of_the_bench_agrees_with_its_reference(case: Case, kind: Kind) -> None:
    replies = Replies(11, 5000, kind)
    assert deviation(case, replies) < 1e-6
    assert deviation(case, replies, spoil=1e-4) > 1e-5 or kind == "offset 1000"


def deviation(case: Case, replies: Replies, spoil: float = 0.0) -> float:
    """Return the deviation of a rule's result, one value of which is changed by some of the updates' spread."""
    f, arrays = case.f(replies.n), replies.arrays()
    model, values = replies.model[NAME], [array[NAME] for array in arrays]
    mixing = expected_weights(
        update_gram(model, values), case.pre, case.rule, f, case.options(replies.d).get("clip_norm", 0.0)
    )
    result = case.pipeline(replies.n, replies.d).aggregate(replies.model, arrays).arrays[NAME].copy()
    smallest = np.argmin(np.abs(result))
    result[smallest] += np.float32(spoil * replies.spread)
    return largest_deviation(result, model, values, mixing, case.rule, f, replies.spread)


def test_columns_at_both_ends_are_compared() -> None:
    d = 40 * COMPARED * 1000
    model = np.zeros(d, np.float32)
    for column in (0, d - 1):
        result = model.copy()
        result[column] = 1.0
        assert largest_deviation(result, model, [model], np.ones((1, 1)), "mean", 0, 1.0) == 1.0


def test_kinds_differ_as_they_say() -> None:
    far, close = Replies(3, 1000, "offset 1000"), Replies(3, 1000, "spread 1e-4")
    assert 990 < far.arrays()[0][NAME].mean() < 1010
    assert 2e-5 < (close.arrays()[0][NAME] - close.model[NAME]).std() < 8e-5
    assert far.nbytes == 12_000
