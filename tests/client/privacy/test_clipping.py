"""Clipping: however it is done, one unit moves the sum by no more than the norm, and the noise is what is charged."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from astrofed.client.privacy.clipping import Adaptive, Flat, PerLayer, make_clipping
from astrofed.client.privacy.dpsgd import Mechanism, clipped_sum, train_privately
from astrofed.client.privacy.factored import Factored
from astrofed.client.privacy.gradients import Units
from astrofed.client.privacy.units import Rows
from astrofed.client.task import TrainInstruction
from astrofed.shared.models.mlp import MLP
from astrofed.shared.plan import Privacy, Training
from astrofed.shared.privacy.accounting import Event, epsilon
from astrofed.shared.privacy.noise import Randomness, UnsafeSeededRandomness

KINDS = {
    "flat": lambda: Flat(2.0),
    "per layer": lambda: PerLayer(2.0, ["a", "a", "b", "c"]),
    "adaptive": lambda: Adaptive(2.0, 0.5),
}
SQUARE = st.one_of(st.sampled_from([0.0, 1e-30, 1e30, math.inf, math.nan]), st.floats(0, 1e4))


class Vector(nn.Module):
    """A weight vector w that starts at 0; the gradient of its mean is the unit's own row."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x @ self.w
        return out


def mean(model: nn.Module, batch: Units) -> Tensor:
    value: Tensor = model(batch[0]).mean()
    return value


def stepped(rows: Tensor, clipping: Flat, noise: float, steps: int = 1, seed: int | None = None) -> Tensor:
    """The change of w by steps at learning rate 1 that see every unit."""
    model, plain = Vector(rows.shape[1]), Training(optimizer="sgd", learning_rate=1.0)
    random = Randomness() if seed is None else UnsafeSeededRandomness(seed)
    mechanism = Mechanism(Event(noise, 1.0, steps), clipping)
    train_privately(model, Rows((rows,), mean), plain, TrainInstruction(1, 1), 1, mechanism, random)
    return model.w.detach()


@settings(deadline=None, derandomize=True, max_examples=200)
@given(kind=st.sampled_from(sorted(KINDS)), squares=st.lists(SQUARE, min_size=4, max_size=4))
def test_no_unit_counts_for_more_than_the_norm(kind: str, squares: list[float]) -> None:
    given_ = torch.tensor([squares, [1.0, 0.0, 0.0, 0.0]])
    factors = KINDS[kind]().factors(given_)
    assert factors.shape == (2, 4) and bool(factors.isfinite().all()) and bool((factors >= 0).all())
    if not bool(given_[0].isfinite().all()):
        assert not bool(factors[0].any())
    else:
        assert float((factors[0].double().square() * given_[0].double()).sum()) <= 2.0**2
    assert bool((factors[1][:1] <= 1).all())


def test_a_short_gradient_stays_and_a_long_one_keeps_its_direction() -> None:
    factors = Flat(2.0).factors(torch.tensor([[1.0, 2.0], [9.0, 16.0]]))
    torch.testing.assert_close(factors, torch.tensor([[1.0, 1.0], [0.4, 0.4]]), rtol=2e-5, atol=0)


def test_each_layer_is_clipped_by_itself_with_weight_and_bias_together() -> None:
    clipping = PerLayer(math.sqrt(2.0), ["one", "one", "two"])  # 1 a layer
    factors = clipping.factors(torch.tensor([[9.0, 16.0, 0.25], [0.01, 0.01, 4.0]]))
    expected = torch.tensor([[0.2, 0.2, 1.0], [1.0, 1.0, 0.5]])
    torch.testing.assert_close(factors, expected, rtol=2e-5, atol=0)


def test_a_plan_names_the_clipping() -> None:
    model = MLP(3, 2, hidden=(8, 5))
    made = {
        kind: make_clipping(Privacy(epsilon=8, delta=1e-5, unit="u", clipping_norm=3.0, clipping=kind), model)  # type: ignore[arg-type]
        for kind in ("flat", "per-layer", "adaptive")
    }
    assert [type(clipping) for clipping in made.values()] == [Flat, PerLayer, Adaptive]
    assert all(clipping.norm == 3.0 for clipping in made.values())
    layers = ["body.0", "body.0", "body.2", "body.2", "head", "head", "linear"]
    ones = torch.full((1, len(layers)), 1e6)
    squares = made["per-layer"].factors(ones)[0].square() * 1e6
    for layer in set(layers):
        share = sum(float(s) for s, name in zip(squares, layers, strict=True) if name == layer)
        assert share == pytest.approx(3.0**2 / 4, rel=1e-4)


@pytest.mark.parametrize("of_step", [0.3, 1.0, 8.0])
@pytest.mark.parametrize("expected", [1.0, 32.0, 4000.0])
def test_sum_and_count_together_are_one_mechanism_of_the_charged_noise(of_step: float, expected: float) -> None:
    """Both scaled by their noise, a unit moves the pair by 1 / z at most: 1 clipping norm and ½ a count."""
    clipping = Adaptive(1.0, 0.5)
    on_sum, on_count = clipping.noise_multiplier(of_step, expected), clipping.count_noise(of_step, expected)
    assert math.hypot(1 / on_sum, 0.5 / on_count) == pytest.approx(1 / of_step, rel=1e-12)
    assert of_step < on_sum < 1.16 * of_step
    together = epsilon([Event(1 / math.hypot(1 / on_sum, 0.5 / on_count), 0.1, 100)], 1e-5)
    assert together == pytest.approx(epsilon([Event(of_step, 0.1, 100)], 1e-5), rel=1e-6)


def test_the_noise_on_the_sum_is_raised_by_what_the_count_costs() -> None:
    clipping = Adaptive(0.7, 0.5)
    moved = stepped(torch.zeros(10, 20_000), clipping, noise=1.0) * 10 / 0.7
    raised = Adaptive(0.7, 0.5).noise_multiplier(1.0, 10.0)
    assert raised == pytest.approx(2 / math.sqrt(3))
    assert stats.kstest(moved.numpy() / raised, "norm").pvalue > 1e-3


def test_the_count_has_noise_of_the_stated_size() -> None:
    random, shares = UnsafeSeededRandomness(4), []
    for _ in range(2000):
        clipping = Adaptive(1.0, 0.5)
        clipping.end_step(8.0, 100.0, random)  # no unit was drawn
        shares.append(0.5 - math.log(clipping.norm) / Adaptive.RATE)
    assert stats.kstest((torch.tensor(shares).numpy() - 0.5) * 100 / 8.0, "norm").pvalue > 1e-3


@pytest.mark.parametrize("quantile, expected", [(0.5, 50.0), (0.9, 90.0)])
@pytest.mark.parametrize("start", [1.0, 5000.0])
def test_the_norm_comes_to_the_quantile_of_the_units_gradients(quantile: float, expected: float, start: float) -> None:
    rows = torch.arange(1.0, 101.0)[:, None] * torch.nn.functional.normalize(torch.ones(1, 3))
    clipping = Adaptive(start, quantile)
    stepped(rows, clipping, noise=0.5, steps=400, seed=6)
    assert clipping.norm == pytest.approx(expected, rel=0.15)


def test_without_any_gradients_the_norm_stays_above_nothing() -> None:
    clipping, random = Adaptive(1.0, 0.5), UnsafeSeededRandomness(8)
    for _ in range(500):
        clipping.factors(torch.zeros(100, 1))
        clipping.end_step(1.0, 100.0, random)
    assert clipping.norm == 1e-6


def test_absurd_units_move_the_norm_no_more_than_any_others() -> None:
    """Whatever one unit's gradient is, its vote is ± ½."""
    norms = []
    for row in (0.0, 1e30, math.nan, math.inf):
        clipping = Adaptive(1.0, 0.5)
        stepped(torch.tensor([[0.5], [0.5], [2.0], [row]]), clipping, noise=1e-9, seed=1)
        norms.append(math.log(clipping.norm) / Adaptive.RATE)
    assert max(norms) - min(norms) <= 1 / 4 + 1e-6


def test_steps_of_adaptive_clipping_stay_within_the_norm_of_each_step() -> None:
    others = torch.ones(9, 2)
    for row in ([0.0, 0.0], [1e6, -1e6]):
        one, other = (
            stepped(torch.cat((others, torch.tensor([r]))), Adaptive(1.0, 0.5), noise=1e-9) for r in (row, [0.0, 0.0])
        )
        assert float((one - other).norm()) * 10 <= 1.0


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e20])
def test_factors_of_a_product_may_be_as_short_as_the_others_are_long(scale: float) -> None:
    """Squared in float32 the short factor would be 0, and a gradient of length 1 would pass a clipping norm of 0.1."""
    layer = nn.Linear(8, 8, bias=False)
    rows, slopes = torch.zeros(1, 8), torch.zeros(1, 8)
    rows[0, 0], slopes[0, 0] = scale, 1 / scale

    def loss(model: nn.Module, batch: Units) -> Tensor:
        value: Tensor = (model(batch[0]) * batch[1]).sum()
        return value

    units = Rows((rows, slopes), loss)
    (total,) = clipped_sum(layer, units, np.array([0]), Flat(0.1))
    assert isinstance(units._form, Factored)
    assert float(total.norm()) == pytest.approx(0.1, rel=1e-4)
