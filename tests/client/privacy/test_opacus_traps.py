"""What plain Opacus 1.6 gets wrong without a word, or can't do, and that the same is right here.

Each test first shows Opacus' number. Should one of those fail, Opacus has changed and the trap may be gone.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from opacus import GradSampleModule, PrivacyEngine
from opacus.grad_sample import wrap_model
from opacus.grad_sample.linear import compute_linear_norm_sample
from opacus.optimizers import AdaClipDPOptimizer, DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from astrofed.client.privacy.clipping import Adaptive, Flat
from astrofed.client.privacy.dpsgd import Mechanism, clipped_sum, train_privately
from astrofed.client.privacy.gradients import Units, gradient
from astrofed.client.privacy.refusals import CouplesUnits, check_private
from astrofed.client.privacy.units import Rows
from astrofed.client.task import TrainInstruction
from astrofed.shared.plan import PlanError, Training, load_plan
from astrofed.shared.privacy.events import Event
from astrofed.shared.privacy.noise import Randomness
from astrofed.shared.seeds import torch_seeded

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

ALL = np.arange(5)
ROUND = TrainInstruction(round=1, seed=1)
PLAIN = Training(optimizer="sgd", learning_rate=1.0)


class Folded(nn.Module):
    """A model that folds its six months into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Conv1d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x.reshape(-1, 3, 1)).reshape(len(x), -1, 4)
        out: Tensor = self.head(hidden).mean(dim=1)
        return out


def drawn(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ROWS, TARGETS = drawn(5, 3), drawn(5, 2, seed=3)


def perceptron(*layers: nn.Module) -> nn.Sequential:
    with torch_seeded(1):
        return nn.Sequential(*layers, nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


def squared(model: nn.Module, batch: Units) -> Tensor:
    value: Tensor = (model(batch[0]) - batch[1]).square().sum(dim=1).mean()
    return value


def parameters(model: nn.Module) -> list[nn.Parameter]:
    return list(model.parameters())


def ours(model: nn.Module, units: Units, loss: Any, norm: float = 1e9) -> list[Tensor]:
    return clipped_sum(model, Rows(units, loss), np.arange(len(units[0])), Flat(norm))


def by_loop(model: nn.Module, units: Units, loss: Any) -> list[Tensor]:
    each = [gradient(loss(model, tuple(t[i : i + 1] for t in units)), parameters(model)) for i in range(len(units[0]))]
    return [torch.stack(found).sum(dim=0) for found in zip(*each, strict=True)]


def close(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, expected, strict=True))


def optimizer(model: nn.Module, norm: float = 1.0, **options: Any) -> DPOptimizer:
    plain = torch.optim.SGD(model.parameters(), lr=1.0)
    return DPOptimizer(plain, noise_multiplier=0.0, max_grad_norm=norm, expected_batch_size=5, **options)


@pytest.mark.parametrize("mode", ["hooks", "functorch"])
def test_time_folded_into_the_batch_makes_thirty_units_of_five(mode: str) -> None:
    model, series = Folded(), drawn(5, 6, 3)
    squared(wrap_model(model, grad_sample_mode=mode), (series, TARGETS)).backward()  # type: ignore[no-untyped-call]
    assert model.inner.weight.grad_sample.shape[0] == 30  # type: ignore[union-attr]
    plain = Folded()
    (part,) = Rows((series, TARGETS), squared).gradients(plain, ALL)
    assert part.squares.shape == (5, 4)
    assert close(ours(plain, (series, TARGETS), squared), by_loop(plain, (series, TARGETS), squared))


def test_points_without_data_are_mixed_into_the_units_row_by_row() -> None:
    """A physics term on collocation points: unit 1 gets what point 1 gives, not what all of them give."""
    points = drawn(5, 3, seed=4)

    def loss(model: nn.Module, batch: Units) -> Tensor:
        return squared(model, batch) + model(points).square().mean()

    model = perceptron()
    loss(GradSampleModule(model), (ROWS, TARGETS)).backward()  # type: ignore[no-untyped-call]
    plain = perceptron()
    alone = gradient(loss(plain, (ROWS[:1], TARGETS[:1])), parameters(plain))
    assert not close([p.grad_sample[0] for p in parameters(model)], alone)  # type: ignore[attr-defined]
    assert close(ours(plain, (ROWS[:1], TARGETS[:1]), loss), alone)
    assert close(ours(plain, (ROWS, TARGETS), loss), by_loop(plain, (ROWS, TARGETS), loss))


def test_losses_with_slopes_break_hooks() -> None:
    def loss(model: nn.Module, batch: Units) -> Tensor:
        inputs = batch[0].detach().clone().requires_grad_()
        out = model(inputs)
        (slope,) = torch.autograd.grad(out.sum(), inputs, create_graph=True)
        value: Tensor = (out - batch[1]).square().sum(dim=1).mean() + slope.square().mean()
        return value

    with pytest.raises(IndexError, match="pop from empty list"):
        loss(GradSampleModule(perceptron()), (ROWS, TARGETS)).backward()  # type: ignore[no-untyped-call]
    plain = perceptron()
    assert close(ours(plain, (ROWS, TARGETS), loss), by_loop(plain, (ROWS, TARGETS), loss))


def test_two_backward_calls_halve_the_step() -> None:
    steps = []
    for pieces in (1, 2):
        model = perceptron()
        wrapped, at, before = GradSampleModule(model), optimizer(model), parameters(perceptron())
        for rows, targets in zip(ROWS.chunk(pieces), TARGETS.chunk(pieces), strict=True):
            squared(wrapped, (rows, targets)).backward()  # type: ignore[no-untyped-call]
        at.step()
        steps.append(torch.stack([(p - q).norm() for p, q in zip(parameters(model), before, strict=True)]).norm())
    assert float(steps[1] / steps[0]) == pytest.approx(0.5, rel=1e-4)
    plain = perceptron()
    sums = [clipped_sum(plain, Rows((ROWS, TARGETS), squared, size), ALL, Flat(1.0)) for size in (None, 3, 1)]
    assert close(sums[0], sums[1]) and close(sums[0], sums[2])


@pytest.mark.parametrize("mode", ["hooks", "functorch", "ew", "ghost"])
def test_micro_batches_under_poisson_sampling_are_refused_or_in_ghost_mode_silently_wrong(mode: str) -> None:
    rows, labels = drawn(8, 3), torch.tensor([0, 1] * 4)

    def step(pieces: int) -> Tensor:
        with torch_seeded(1):
            model = nn.Linear(3, 2)
        before, criterion = parameters(model)[0].detach().clone(), nn.CrossEntropyLoss()
        wrapped, at, *rest = PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
            criterion=criterion,
            data_loader=torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows, labels), batch_size=8),
            noise_multiplier=0.0,
            max_grad_norm=0.01,
            grad_sample_mode=mode,
        )
        loss = rest[0] if mode == "ghost" else criterion
        for inputs, targets in zip(rows.chunk(pieces), labels.chunk(pieces), strict=True):
            loss(wrapped(inputs), targets).backward()
        at.step()
        return parameters(model)[0].detach() - before

    whole = step(1)
    if mode == "ghost":
        assert float((step(2) - whole).norm()) > 0.1 * float(whole.norm())
    else:
        with pytest.raises((ValueError, RuntimeError), match=r"grad accumulation|accumulates the gradients"):
            step(2)

    def cross_entropy(model: nn.Module, batch: Units) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    with torch_seeded(1):
        plain = nn.Linear(3, 2)
    for micro_batch in (8, 4, 3):
        units = Rows((rows, labels), cross_entropy, micro_batch)
        found = -clipped_sum(plain, units, np.arange(8), Flat(0.01))[0] / 8
        torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-7)


def test_an_empty_batch_breaks_expanded_weights() -> None:
    nothing = ROWS[:0], TARGETS[:0]
    with pytest.raises(RuntimeError, match="Batch size must be positive"):
        squared(wrap_model(perceptron(), grad_sample_mode="ew"), nothing)
    plain, before = perceptron(), parameters(perceptron())
    mechanism = Mechanism(Event(1.0, 1e-9, 1), Flat(1.0))
    train_privately(plain, Rows((ROWS, TARGETS), squared), PLAIN, ROUND, 1, mechanism)
    assert all(bool((p != q).all()) for p, q in zip(parameters(plain), before, strict=True))  # a step of noise


def test_frozen_batch_norm_passes_the_validator_and_still_couples_units() -> None:
    model = perceptron(nn.BatchNorm1d(3))
    model[0].requires_grad_(False)
    model.train()
    assert ModuleValidator.validate(model, strict=False) == []
    others = torch.cat((ROWS[:4], 100 * ROWS[4:]))
    assert not torch.allclose(model(ROWS)[0], model(others)[0], atol=0.1)
    with pytest.raises(CouplesUnits, match=r"layer '0' \(BatchNorm1d\)"):
        check_private(model, Training())


def test_a_penalty_on_the_batch_s_mean_breaks_the_bound() -> None:
    """Replacing one unit may move a sum of gradients clipped to 1 by 2 at most."""

    def loss(model: nn.Module, batch: Units) -> Tensor:
        value: Tensor = model(batch[0]).mean(dim=0).square().sum()
        return value

    def of_opacus(rows: Tensor) -> Tensor:
        model = nn.Linear(3, 1, bias=False)
        nn.init.ones_(model.weight)
        loss(GradSampleModule(model), (rows,)).backward()  # type: ignore[no-untyped-call]
        at = optimizer(model)
        at.clip_and_accumulate()
        return model.weight.summed_grad.flatten()  # type: ignore[attr-defined,no-any-return]

    def of_ours(rows: Tensor) -> Tensor:
        model = nn.Linear(3, 1, bias=False)
        nn.init.ones_(model.weight)
        return ours(model, (rows,), loss, norm=1.0)[0].flatten()

    one = torch.cat((10 * torch.ones(4, 3), 1e3 * torch.ones(1, 3)))
    other = torch.cat((10 * torch.ones(4, 3), -1e3 * torch.ones(1, 3)))
    assert float((of_opacus(one) - of_opacus(other)).norm()) > 4 * 2
    assert float((of_ours(one) - of_ours(other)).norm()) <= 2


def test_ghost_norms_in_float32_miss_what_cancels() -> None:
    """A unit of two rows that nearly cancel: its gradient is 278 long, Opacus' ghost norm says 0 and wouldn't clip."""
    layer = nn.Linear(4, 4, bias=False)
    row, slope, rest = drawn(1, 4, seed=5), drawn(1, 4, seed=6), 1e-6 * drawn(1, 4, seed=7)
    rows, slopes = 1e6 * torch.cat((row, row)), 1e4 * torch.cat((slope, rest - slope))
    true = float((rows.double().T @ slopes.double()).norm())
    ghost = float(compute_linear_norm_sample(layer, [rows[None]], slopes[None])[layer.weight])
    assert true > 1e3 and not abs(ghost - true) < 0.5 * true

    def loss(model: nn.Module, batch: Units) -> Tensor:
        value: Tensor = (model(batch[0]) * batch[1]).sum()
        return value

    (part,) = Rows((rows[None], slopes[None]), loss).gradients(layer, np.array([0]))
    assert float(part.squares.sum().sqrt()) == pytest.approx(true, rel=0.3)  # as far as float32 knows it
    assert float(ours(layer, (rows[None], slopes[None]), loss, norm=1.0)[0].norm()) <= 1.0


def test_adaptive_clipping_counts_units_whole_but_accounts_for_halves() -> None:
    def counted(units: int) -> float:
        model = nn.Linear(2, 1)
        at = AdaClipDPOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0),
            noise_multiplier=1.0,
            target_unclipped_quantile=0.5,
            clipbound_learning_rate=0.2,
            max_clipbound=10.0,
            min_clipbound=0.1,
            unclipped_num_std=1.0,
            max_grad_norm=1.0,
            expected_batch_size=5,
        )
        for p in model.parameters():
            p.grad_sample = torch.zeros(units, *p.shape)  # type: ignore[attr-defined]
        at.clip_and_accumulate()
        return float(at.unclipped_num)

    assert counted(5) - counted(4) == 1.0  # the noise of theorem 1 is for ½
    clipping = Adaptive(1.0, 0.5)
    for squares in (torch.zeros(1, 2), torch.full((1, 2), 1e9)):
        before = clipping._count
        clipping.factors(squares)
        assert abs(clipping._count - before) == 0.5


def test_adaptive_clipping_survives_an_empty_batch() -> None:
    clipping, plain = Adaptive(1.0, 0.5), perceptron()
    train_privately(plain, Rows((ROWS, TARGETS), squared), PLAIN, ROUND, 1, Mechanism(Event(1.0, 1e-9, 1), clipping))
    assert clipping.norm > 0 and math.isfinite(clipping.norm)


def test_secure_noise_cannot_be_had_and_ours_is_not_torch_s() -> None:
    with pytest.raises(ImportError, match="torchcsprng"):
        PrivacyEngine(secure_mode=True)
    torch.manual_seed(0)
    first = Randomness().normal(4)
    torch.manual_seed(0)
    assert not np.array_equal(first, Randomness().normal(4))


def test_batches_of_one_size_are_accepted_as_if_they_were_poisson_s() -> None:
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(drawn(40, 3)), batch_size=8, shuffle=True)
    model = perceptron()
    _, at, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=data,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    assert at is not None and {len(batch[0]) for batch in loader} == {8}
    privacy = {"unit": "planet", "epsilon": 8, "delta": 1e-5, "sampling": "shuffled"}
    participants = [{"name": "K2", "data": "bundled:planets/k2"}]
    with pytest.raises(PlanError, match=r"privacy\.sampling: epsilon is computed for Poisson sampling.*'shuffled'"):
        load_plan({"name": "t", "task": "planets", "model": "mlp", "privacy": privacy, "participants": participants})
