"""One participant moves the sum by at most the clipping norm, whatever it and the others send."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrofed.server.privacy.bounded import clipped_sum

REFERENCE = {
    "w": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32),
    "b": np.array([0.25]),
    "scale": np.array(2.0, np.float32),
    "steps": np.array([7]),
}
values = st.lists(st.floats(-1e30, 1e30), min_size=6, max_size=6)


def moved(change: list[float]) -> dict[str, np.ndarray]:
    parts = {"w": np.reshape(change[:4], (2, 2)), "b": np.array(change[4:5]), "scale": np.array(change[5])}
    floats = {name: (REFERENCE[name] + part).astype(REFERENCE[name].dtype) for name, part in parts.items()}
    return {**floats, "steps": np.array([10**9])}


def length(total: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    return math.sqrt(sum(float(((total[name] - other[name]) ** 2).sum()) for name in total))


@given(st.lists(values, min_size=1, max_size=5), st.floats(1e-3, 1e3))
def test_leaving_one_out_moves_the_sum_by_at_most_the_norm(changes: list[list[float]], norm: float) -> None:
    models = [moved(change) for change in changes]
    whole, _ = clipped_sum(REFERENCE, models, norm)
    without, _ = clipped_sum(REFERENCE, models[1:], norm)
    assert length(whole, without) <= norm * (1 + 1e-12)


def test_short_updates_are_summed_as_they_are_and_long_ones_shortened() -> None:
    short, long = moved([0.5, 0, 0, 0, 0, 0]), moved([0, 300, 0, 0, 400, 0])
    total, unclipped = clipped_sum(REFERENCE, [short, long], 1.0)
    assert unclipped == 1 and "steps" not in total
    assert total["w"] == pytest.approx(np.array([[0.5, 0.6], [0, 0]]), rel=1e-6)
    assert total["b"] == pytest.approx(0.8, rel=1e-6)


def test_nobody_is_a_sum_of_zeros() -> None:
    total, unclipped = clipped_sum(REFERENCE, [], 1.0)
    assert unclipped == 0 and all(not own.any() and own.shape == REFERENCE[name].shape for name, own in total.items())
