"""DP-SGD: each unit's own gradient, its bounded influence, noise and sampling, and that breaking any is noticed."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.optimizers import DPOptimizerFastGradientClipping
from scipy import stats
from torch import Tensor, nn

from astrofed.client.privacy import dpsgd
from astrofed.client.privacy.clipping import Flat
from astrofed.client.privacy.dpsgd import Mechanism, sampling, train_privately
from astrofed.client.privacy.gradients import Units
from astrofed.client.privacy.refusals import CouplesUnits, KeepsData, NotWithPrivacy
from astrofed.client.privacy.units import Rows
from astrofed.client.task import TrainInstruction
from astrofed.client.training import TrainingDiverged
from astrofed.shared.models.mlp import MLP
from astrofed.shared.plan import Training
from astrofed.shared.privacy.accounting import Event, epsilon
from astrofed.shared.privacy.noise import Randomness, UnsafeSeededRandomness
from astrofed.shared.seeds import torch_seeded

PLAIN = Training(optimizer="sgd", learning_rate=1.0)
NO_NOISE = 1e-12  # clipping norms; the accountant wants a positive number


class Vector(nn.Module):
    """A weight vector w that starts at 0."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x @ self.w
        return out


def loss(model: nn.Module, batch: Units) -> Tensor:
    return (model(batch[0]) - batch[1]).square().sum(dim=1).mean()


def linear(model: nn.Module, batch: Units) -> Tensor:
    """A loss whose gradient by w is the unit's own row."""
    value: Tensor = model(batch[0]).mean()
    return value


def made(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch_seeded(1):
        return build().to(dtype)


def perceptron() -> MLP:
    return MLP(3, 2, hidden=(8, 5))


def drawn(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def trained(
    model: nn.Module,
    units: Units,
    loss: Callable[[nn.Module, Units], Tensor] = linear,
    *,
    noise: float = NO_NOISE,
    rate: float = 1.0,
    steps: int = 1,
    clip: float | Flat = 1.0,
    micro_batch: int | None = None,
    training: Training = PLAIN,
    mu: float = 0.0,
    randomness: Randomness | None = None,
) -> nn.Module:
    instruction = TrainInstruction(round=1, seed=5, proximal_mu=mu)
    mechanism = Mechanism(Event(noise, rate, steps), clip if isinstance(clip, Flat) else Flat(clip))
    train_privately(model, Rows(units, loss, micro_batch), training, instruction, 1, mechanism, randomness)
    return model


def change(rows: Tensor, **options: float) -> Tensor:
    """The change of w by one step at learning rate 1: minus the sum of clipped rows over the expected batch size."""
    return weights(trained(Vector(rows.shape[1]), (rows,), **options))  # type: ignore[arg-type]


def test_a_step_is_the_clipped_mean_over_the_expected_batch() -> None:
    rows = torch.tensor([[0.3, 0.4], [30.0, 40.0], [0.0, 0.0]])
    expected = -(torch.tensor([0.3, 0.4]) + torch.tensor([0.6, 0.8])) / 3
    torch.testing.assert_close(change(rows), expected, rtol=2e-5, atol=0)


ABSURD = st.one_of(st.sampled_from([0.0, 1e30, -1e30, math.inf, math.nan]), st.floats(-1e3, 1e3))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(row=st.lists(ABSURD, min_size=3, max_size=3), clip=st.sampled_from([0.1, 1.0, 7.0]))
def test_one_unit_moves_the_sum_by_at_most_the_clipping_norm(row: list[float], clip: float) -> None:
    others, units = drawn(9, 3), 10
    without = change(torch.cat((others, torch.zeros(1, 3))), clip=clip)
    with_it = change(torch.cat((others, torch.tensor([row]))), clip=clip)
    assert float((with_it - without).double().norm()) * units <= clip * (1 + 1e-6)


def test_replacing_a_planets_row_by_an_absurd_one_is_bounded_for_all_parameters_together() -> None:
    inputs, targets = drawn(10, 3), drawn(10, 2, seed=4)
    absurd = inputs.clone()
    absurd[4] = 1e6
    one, other = (weights(trained(made(perceptron), (x, targets), loss, clip=2.0)) for x in (inputs, absurd))
    assert 0 < float((one - other).norm()) * 10 <= 2 * 2.0 * (1 + 1e-5)


def test_a_unit_without_a_finite_gradient_counts_nothing_and_spoils_nobody() -> None:
    rows = drawn(4, 2)
    spoiled = torch.cat((rows, torch.tensor([[math.nan, 1.0]])))
    torch.testing.assert_close(change(spoiled) * 5, change(rows) * 4)


@pytest.mark.parametrize("noise, clip", [(1.0, 1.0), (3.0, 0.5)])
def test_noise_has_the_stated_size_whatever_the_batch(noise: float, clip: float) -> None:
    moved = change(torch.zeros(10, 20_000), noise=noise, clip=clip) * 10 / (noise * clip)
    assert abs(float(moved.mean())) < 4 / 20_000**0.5
    assert stats.kstest(moved.numpy(), "norm").pvalue > 1e-3


def test_each_step_draws_fresh_noise() -> None:
    one, two = (change(torch.zeros(10, 20_000), noise=1.0, steps=steps) for steps in (1, 4))
    assert float(two.std() / one.std()) == pytest.approx(2, rel=0.05)


def test_each_unit_is_drawn_with_the_same_probability_independently_of_others() -> None:
    units, rate, times = 60, 0.3, 300
    picked = torch.stack([change(torch.eye(units), rate=rate, clip=2.0) < -1e-3 for _ in range(times)]).double()
    sizes = picked.sum(dim=1)
    assert abs(float(sizes.mean()) - rate * units) < 4 * math.sqrt(units * rate * (1 - rate) / times)
    assert float(sizes.var()) == pytest.approx(units * rate * (1 - rate), rel=0.4)  # fixed batches would have none
    assert float((picked.mean(dim=0) - rate).abs().max()) < 5 * math.sqrt(rate * (1 - rate) / times)


def test_the_divisor_is_the_expected_number_of_units_not_the_drawn_one() -> None:
    moved = change(torch.eye(8), rate=0.25)
    assert set(moved[moved < -1e-3].mul(-2).round(decimals=3).tolist()) <= {1.0}


def test_an_empty_batch_is_a_step_of_noise_alone() -> None:
    moved = change(torch.ones(2, 5000), rate=1e-9, noise=1.0, clip=1.0) * 2e-9
    assert stats.kstest(moved.numpy(), "norm").pvalue > 1e-3


def test_epochs_and_batch_size_say_rate_and_steps() -> None:
    assert sampling(Training(epochs=3, batch_size=10), 100) == (0.1, 30)
    assert sampling(Training(epochs=3, batch_size=10), 7) == (1.0, 3)
    assert sampling(Training(epochs=3, batch_size=10, max_steps=4), 100) == (0.1, 4)
    assert sampling(Training(epochs=1, batch_size=80), 100) == (0.8, 1)


def test_two_rounds_never_repeat_and_global_seeds_change_nothing() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(weights(trained(made(perceptron), (drawn(9, 3), drawn(9, 2)), loss, noise=1.0)))
    assert not torch.equal(*results)


def test_with_unsafe_seeded_randomness_a_round_repeats_to_the_bit() -> None:
    def once(seed: int) -> Tensor:
        units = drawn(30, 3), drawn(30, 2)
        random = UnsafeSeededRandomness(seed)
        return weights(trained(made(perceptron), units, loss, noise=1.0, rate=0.3, steps=5, randomness=random))

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))


def test_fedproxs_pull_is_added_outside_the_clipped_sum() -> None:
    rows = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    slow = Training(optimizer="sgd", learning_rate=0.1)
    moved = weights(trained(Vector(2), (rows,), steps=2, training=slow, mu=100.0))
    first = -0.1
    torch.testing.assert_close(moved, torch.tensor([first - 0.1 * (1 + 100 * first), 0.0]), rtol=1e-4, atol=1e-9)


def test_frozen_parameters_stay() -> None:
    model = made(perceptron)
    model.linear.weight.requires_grad_(False)  # type: ignore[union-attr]
    before = weights(model)
    trained(model, (drawn(9, 3), drawn(9, 2)), loss, noise=1.0)
    assert bool((model.linear.weight == 0).all())  # type: ignore[union-attr]
    assert not torch.equal(weights(model), before)


def test_dropout_differs_between_units_and_is_repeatable() -> None:
    class Dropped(Vector):
        def __init__(self) -> None:
            super().__init__(50)
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.dropout(x))

    one, again = (weights(trained(Dropped(), (torch.ones(20, 50),))) for _ in range(2))
    assert torch.equal(one, again)
    assert float(one.std()) > 0
    assert len(set(one.tolist())) > 5  # one mask for all units would give two values


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(3), nn.SyncBatchNorm(3), nn.InstanceNorm1d(3, track_running_stats=True)]
)
def test_layers_that_couple_units_are_refused_by_name(layer: nn.Module) -> None:
    with pytest.raises(CouplesUnits, match=rf"layer '0' \({type(layer).__name__}\).*GroupNorm"):
        trained(nn.Sequential(layer, nn.Linear(3, 2)), (drawn(9, 3), drawn(9, 2)), loss)


def test_a_second_clipping_is_refused() -> None:
    with pytest.raises(NotWithPrivacy, match=r"gradient_clip = 1\.0 .*privacy\.clipping_norm"):
        trained(Vector(2), (torch.ones(3, 2),), training=PLAIN.model_copy(update={"gradient_clip": 1.0}))


def test_weights_that_leave_the_finite_range_are_told() -> None:
    with pytest.raises(TrainingDiverged, match=r"round 1; lower training\.learning_rate"):
        trained(Vector(2), (torch.ones(3, 2),), training=PLAIN.model_copy(update={"learning_rate": 1e39}))


def test_afterwards_the_model_evaluates_and_holds_no_gradients() -> None:
    model = trained(made(perceptron), (drawn(9, 3), drawn(9, 2)), loss, noise=1.0)
    assert not model.training
    assert all(getattr(p, name) is None for p in model.parameters() for name in ("grad", "summed_grad"))


def evidence(runs: int = 250) -> float:
    """Return a lower bound on epsilon (95 %) from telling apart runs with and without one outrageous unit."""
    rows = torch.zeros(20, 1)
    outrageous = rows.clone()
    outrageous[0] = 1e4
    without, with_it = (torch.cat([change(x, noise=2.0) for _ in range(runs)]) for x in (rows, outrageous))
    threshold = float(without.min())  # half of the runs choose the threshold, the others are judged by it
    without = torch.cat([change(rows, noise=2.0) for _ in range(runs)])
    alarms = stats.binomtest(int((without < threshold).sum()), runs).proportion_ci(0.9).high
    hits = stats.binomtest(int((with_it < threshold).sum()), runs).proportion_ci(0.9).low
    return math.log(max(hits, 1e-9) / alarms)


CLAIMED = epsilon([Event(2.0, 1.0, 1)], 1e-5)


def test_an_audit_finds_no_more_than_is_claimed() -> None:
    assert evidence() < CLAIMED


def no_noise(optimizer: DPOptimizerFastGradientClipping) -> None:
    for parameter in optimizer.params:
        parameter.grad = parameter.summed_grad.clone()


def no_clipping(_: Flat, squares: Tensor) -> Tensor:
    return torch.ones_like(squares)


BUGS = [(dpsgd._NoisyOptimizer, "add_noise", no_noise), (Flat, "factors", no_clipping)]


@pytest.fixture(params=BUGS, ids=["no noise", "no clipping"])
def planted_bug(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    where, name, bug = request.param
    monkeypatch.setattr(where, name, bug)
    yield name


def test_an_audit_finds_a_planted_bug(planted_bug: str) -> None:
    assert evidence() > CLAIMED


@pytest.mark.parametrize("micro_batch", [1, 3, 100])
def test_micro_batches_make_the_same_step(micro_batch: int) -> None:
    units = drawn(10, 3), drawn(10, 2, seed=3)
    whole, parts = (
        weights(trained(made(perceptron), units, loss, micro_batch=m, randomness=UnsafeSeededRandomness(1), noise=1.0))
        for m in (None, micro_batch)
    )
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_a_model_that_writes_what_it_saw_into_a_buffer_is_refused_after_the_round() -> None:
    class Remembers(Vector):
        def __init__(self) -> None:
            super().__init__(2)
            self.register_buffer("seen", torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.seen += x.detach().mean(dim=0)  # type: ignore[operator]
            return super().forward(x)

    with pytest.raises(KeepsData, match=r"buffer 'seen'.*make it a parameter"):
        trained(Remembers(), (torch.ones(3, 2),))


def test_buffers_that_stay_are_no_trouble() -> None:
    model = Vector(2)
    model.register_buffer("scale", torch.full((2,), 3.0))
    trained(model, (torch.ones(3, 2),))
    assert torch.equal(model.get_buffer("scale"), torch.full((2,), 3.0))
