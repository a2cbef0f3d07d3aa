"""What is checked of an update: finite, also where squares overflow; its length; names, shapes and types."""

import math

import pytest
import torch
from torch import nn

from astrofed.client.update_checks import Form, update_norm
from astrofed.shared.arrays import WrongArrays, from_model, from_state_dict
from astrofed.shared.slots import find_slots


class Plain(nn.Module):
    """Nothing but arrays; `slow` are such that torch itself has to be asked for them."""

    def __init__(self, *, slow: bool = False, **arrays: torch.Tensor) -> None:
        super().__init__()
        given = {"a": torch.linspace(-1, 1, 100_001), "b": torch.ones(3, 5, dtype=torch.float64), **arrays}
        for name, array in given.items():
            self.register_buffer(name, array)
        if slow:
            self.register_buffer("slow", torch.rand(4, 5).T)
        assert (find_slots(self) is None) is slow


def finite(model: nn.Module) -> bool:
    record = from_model(model)
    return Form.of(record).is_finite(record)


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [torch.float16, torch.float32, torch.float64, torch.complex64])
def test_one_number_that_is_not_finite_is_found(bad: float, kind: torch.dtype, slow: bool) -> None:
    values = torch.zeros(70_000, dtype=kind)
    model = Plain(c=values, slow=slow)
    assert finite(model)
    values[69_999] = bad
    assert not finite(model)


def test_large_numbers_are_finite_though_their_squares_are_not() -> None:
    assert finite(Plain(c=torch.full((3,), 3e38)))
    assert finite(Plain(c=torch.full((3,), 1e200, dtype=torch.float64)))
    assert finite(Plain(c=torch.full((3,), 6e4, dtype=torch.float16)))
    assert finite(Plain(c=torch.full((3,), 3e38, dtype=torch.complex64)))
    assert finite(Plain(c=torch.tensor([2**62])))  # integers always are
    assert finite(Plain(c=torch.zeros(0)))
    assert not finite(Plain(c=torch.tensor([3e38, math.inf])))
    assert not finite(Plain(c=torch.tensor(math.nan)))


def test_the_length_is_over_all_arrays() -> None:
    before, after = Plain(), Plain()
    sent = from_model(before)
    assert update_norm(from_model(after), sent) == 0.0
    for name, change in (("a", 3e-3), ("b", -0.5)):
        after.get_buffer(name).add_(change)
    pairs = zip(after.state_dict().values(), before.state_dict().values(), strict=True)
    expected = math.sqrt(sum(float((new.double() - old.double()).square().sum()) for new, old in pairs))
    assert update_norm(from_model(after), sent) == pytest.approx(expected, rel=1e-12)
    counts = Plain(n=torch.tensor(4))
    sent = from_model(counts)
    counts.get_buffer("n").add_(3)
    assert update_norm(from_model(counts), sent) == 3.0


@pytest.mark.parametrize("slow", [False, True])
def test_a_form_fits_while_names_order_shapes_and_types_stay(slow: bool) -> None:
    model = Plain(slow=slow)
    form = Form.of(from_model(model))

    def fits(model: nn.Module) -> bool:
        return form.fits(from_model(model))

    model.get_buffer("a").zero_()
    assert fits(model) and fits(Plain(slow=slow))
    assert not fits(Plain(slow=slow, c=torch.zeros(1)))
    assert not fits(Plain(slow=slow, a=torch.zeros(100_001, dtype=torch.float64)))
    assert not fits(Plain(slow=slow, b=torch.ones(5, 3, dtype=torch.float64)))
    model.a = torch.zeros(100_001)
    assert fits(model)  # other memory, the same form
    model.a = torch.zeros(7)
    assert not fits(model)
    state = {"x": torch.zeros(1), "y": torch.zeros(1)}
    turned = dict(reversed(state.items()))
    assert not Form.of(from_state_dict(state)).fits(from_state_dict(turned))


def test_what_numpy_has_no_arrays_for_is_named() -> None:
    with pytest.raises(WrongArrays, match="numpy has no arrays for"):
        from_model(nn.Linear(2, 2).bfloat16())
