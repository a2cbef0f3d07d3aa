"""What is checked of an update: finite, also where squares overflow; its length; names, shapes and types."""

import math

import pytest
import torch

from astrofed.client.update_checks import is_finite, layout, update_norm
from astrofed.shared.arrays import from_state_dict


def state(**arrays: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"a": torch.linspace(-1, 1, 100_001), "b": torch.ones(3, 5, dtype=torch.float64), **arrays}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_number_that_is_not_finite_is_found(bad: float, kind: torch.dtype) -> None:
    values = torch.zeros(70_000, dtype=kind)
    assert is_finite(state(c=values))
    values[69_999] = bad
    assert not is_finite(state(c=values))


def test_large_numbers_are_finite_though_their_squares_are_not() -> None:
    assert is_finite(state(c=torch.full((3,), 3e38)))
    assert is_finite(state(c=torch.tensor([2**62])))  # integers always are
    assert is_finite(state(c=torch.rand(4, 5).T)) and is_finite(state(c=torch.zeros(0)))
    assert not is_finite(state(c=torch.tensor([[1.0, math.nan], [2.0, 3.0]]).T))


def test_the_length_is_over_all_arrays() -> None:
    before, after = state(), state()
    after["a"], after["b"] = after["a"] + 3e-3, after["b"] - 0.5
    expected = math.sqrt(sum(float((after[k].double() - before[k].double()).square().sum()) for k in before))
    assert update_norm(after, from_state_dict(before)) == pytest.approx(expected, rel=1e-12)
    assert update_norm(before, from_state_dict(before)) == 0.0
    counts = {"n": torch.tensor(7)}
    assert update_norm(counts, from_state_dict({"n": torch.tensor(4)})) == 3.0


def test_layouts_differ_by_name_order_shape_and_type() -> None:
    plain = layout(state())
    assert plain == layout(state())
    assert plain != layout(state(c=torch.zeros(1)))
    assert plain != layout(dict(reversed(state().items())))
    assert plain != layout(state(a=torch.zeros(100_001, dtype=torch.float64)))
    assert plain != layout(state(b=torch.ones(5, 3, dtype=torch.float64)))
