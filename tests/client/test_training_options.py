"""How a site computes its steps: optimisers, accumulation, precision, checkpointing, schedules, profiles."""

import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from astrofed.client.optimizers import OptimizerMissing, hessian_diagonal, make_optimizer
from astrofed.client.precision import CheckpointingUnsupported, LowPrecision
from astrofed.client.privacy.refusals import NotWithPrivacy, check_private
from astrofed.client.task import TrainInstruction
from astrofed.client.training import LocalFit, learning_rate, train_locally
from astrofed.shared.models.datacube_layout import DatacubeLayout
from astrofed.shared.models.datacube_net import DatacubeNet
from astrofed.shared.plan import Training
from astrofed.shared.seeds import torch_seeded

Batch = tuple[Tensor, Tensor]
INPUTS = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
TARGETS = torch.sin(INPUTS @ torch.randn(4, 2, generator=torch.Generator().manual_seed(2)))


def network() -> nn.Sequential:
    with torch_seeded(3):
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))


def in_order(size: int) -> Any:
    def source(_: torch.Generator) -> Iterator[Batch]:
        for start in range(0, len(INPUTS), size):
            yield INPUTS[start : start + size], TARGETS[start : start + size]

    return source


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def weights(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def fit(model: nn.Module, size: int = 6, mu: float = 0.0, **keys: Any) -> LocalFit:
    training = Training.model_validate({"learning_rate": 0.02, **keys})
    return train_locally(model, in_order(size), loss, training, TrainInstruction(1, 5, mu), rounds=1)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lion", "muon", "sophia"])
def test_accumulated_batches_are_one_large_batch(optimizer: str) -> None:
    """Sophia's curvature is that of the first of them, so its steps differ."""
    large, small = network(), network()
    one = fit(large, size=12, optimizer=optimizer, epochs=2, gradient_clip=0.5, mu=0.3)
    many = fit(small, size=3, optimizer=optimizer, epochs=2, gradient_clip=0.5, mu=0.3, accumulate=4)
    assert one.steps == many.steps == 4 and one.loss == pytest.approx(many.loss, rel=0.05)
    if optimizer != "sophia":
        torch.testing.assert_close(weights(small), weights(large), rtol=1e-3, atol=1e-5)


def test_what_is_left_at_an_epochs_end_is_a_step_of_its_own() -> None:
    plain, accumulated = network(), network()
    assert fit(accumulated, size=6, accumulate=3, optimizer="sgd").steps == 2  # of 3 and 1 batches

    optimizer = torch.optim.SGD(plain.parameters(), lr=0.02)
    for rows in (slice(0, 18), slice(18, 24)):
        optimizer.zero_grad()
        loss(plain, (INPUTS[rows], TARGETS[rows])).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.testing.assert_close(weights(accumulated), weights(plain))


def test_max_steps_counts_steps_not_batches() -> None:
    assert fit(network(), size=2, accumulate=4, max_steps=2, epochs=5).steps == 2
    assert fit(network(), size=8, accumulate=2, max_steps=3, epochs=5).steps == 3


@pytest.mark.parametrize("optimizer", ["lion", "muon", "sophia"])
def test_each_optimiser_learns_and_follows_its_seed(optimizer: str) -> None:
    untrained = fit(network(), max_steps=1).loss
    rate = {"lion": 3e-3, "muon": 0.05, "sophia": 0.03}[optimizer]
    first, again = network(), network()
    fit(first, optimizer=optimizer, epochs=40, learning_rate=rate)
    fit(again, optimizer=optimizer, epochs=40, learning_rate=rate)
    assert torch.equal(weights(first), weights(again))
    assert loss(first, (INPUTS, TARGETS)).item() < 0.5 * untrained


def test_muon_makes_steps_orthogonal_and_leaves_the_rest_to_adamw() -> None:
    model = network()
    optimizer: Any = make_optimizer(model, Training(optimizer="muon", weight_decay=0.0), 0.02)
    groups = {group["use_muon"]: group["params"] for group in optimizer.param_groups}
    assert [p.shape for p in groups[True]] == [(16, 4), (2, 16)] and [p.ndim for p in groups[False]] == [1, 1]
    before = [weight.detach().clone() for weight in groups[True]]
    loss(model, (INPUTS, TARGETS)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    for weight, start in zip(groups[True], before, strict=True):
        sizes = torch.linalg.svdvals((weight.detach() - start).double())
        assert float(sizes.max() / sizes.min()) < 2.0  # Newton and Schulz's iteration makes them alike, not equal


def test_hutchinsons_estimate_is_the_hessians_diagonal_where_it_is_diagonal() -> None:
    """Of Σ c w², whatever the signs drawn; the gradient is left as backward would."""
    weight, unused = nn.Parameter(torch.tensor([1.0, -2.0, 3.0])), nn.Parameter(torch.ones(2))
    curvature = torch.tensor([0.5, 1.0, 4.0])
    found = hessian_diagonal((curvature * weight**2).sum(), [weight, unused], torch.Generator().manual_seed(0))
    torch.testing.assert_close(found[0], 2 * curvature)
    assert not found[1].any() and unused.grad is None
    torch.testing.assert_close(weight.grad, 2 * curvature * weight.detach())


def test_without_the_package_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)  # as if it were not installed
    with pytest.raises(OptimizerMissing, match=r"'lion' needs pytorch-optimizer: pip install 'astrofed\[optimizers\]'"):
        make_optimizer(network(), Training(optimizer="lion"), 0.1)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains_nearly_the_same_weights(precision: str) -> None:
    single, low = network(), network()
    one, other = fit(single, epochs=10), fit(low, epochs=10, precision=precision)
    assert other.loss == pytest.approx(one.loss, rel=0.05) and other.loss != one.loss
    assert all(parameter.dtype == torch.float32 for parameter in low.parameters())
    start = weights(network())
    moved, apart = (weights(single) - start).norm(), (weights(low) - weights(single)).norm()
    assert 0 < float(apart) < 0.2 * float(moved)


def test_only_the_network_is_in_low_precision() -> None:
    model = LowPrecision(network(), torch.bfloat16)
    seen: list[torch.dtype] = []
    model.model[0].register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    out = model(INPUTS)
    assert seen == [torch.bfloat16] and out.dtype == torch.float32
    assert (INPUTS @ INPUTS.T).dtype == torch.float32  # what a loss does with it is not


def climate() -> DatacubeNet:
    with torch_seeded(1):
        return DatacubeNet(DatacubeLayout(variables=("ta", "ps")), base_features=8, coarse_features=8, depth=2)


def fit_climate(model: nn.Module, **keys: Any) -> None:
    shapes = [[axis if isinstance(axis, int) else 8 for axis in given.axes[1:]] for given in climate().signature()]
    state, forcing = (torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)) for shape in shapes)

    def source(_: torch.Generator) -> Iterator[Batch]:
        yield from [(state, forcing)] * 3

    def mean_square(net: nn.Module, batch: Batch) -> Tensor:
        return (net(*batch) - 1).square().mean()

    train_locally(model, source, mean_square, Training.model_validate(keys), TrainInstruction(1, 5), rounds=1)


@pytest.mark.parametrize("optimizer", ["adamw", "sophia"])
def test_checkpointing_changes_no_bit_and_recomputes(optimizer: str) -> None:
    plain, checkpointed, calls = climate(), climate(), [0]
    checkpointed.middle[0].register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    fit_climate(plain, optimizer=optimizer)
    fit_climate(checkpointed, optimizer=optimizer, checkpoint=True)
    assert torch.equal(weights(plain), weights(checkpointed))
    again = 3 if optimizer == "adamw" else 4  # in each step's backward pass, and once more for the curvature
    assert calls[0] == 3 + again and not checkpointed.checkpointing


def test_checkpointing_a_network_without_places_for_it_is_refused() -> None:
    with pytest.raises(CheckpointingUnsupported, match="Sequential has no places for gradient checkpointing"):
        fit(network(), checkpoint=True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_datacube_network_trains_in_low_precision(precision: str) -> None:
    model, single = climate(), climate()
    fit_climate(model, precision=precision, learning_rate=0.01)
    fit_climate(single, learning_rate=0.01)
    start = weights(climate())
    assert float((weights(model) - weights(single)).norm()) < 0.3 * float((weights(single) - start).norm())


def test_deterministic_kernels_are_asked_for_while_a_round_lasts() -> None:
    seen: list[bool] = []

    def watching(model: nn.Module, batch: Batch) -> Tensor:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return loss(model, batch)

    training = Training(deterministic=True, max_steps=1)
    train_locally(network(), in_order(6), watching, training, TrainInstruction(1, 5), rounds=1)
    assert seen == [True] and not torch.are_deterministic_algorithms_enabled()


def test_a_site_s_operator_gets_a_profile_and_a_plan_can_t_ask_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASTROFED_PROFILE", str(tmp_path / "profiles"))
    profiled, plain = network(), network()
    fit(profiled, epochs=4)
    monkeypatch.delenv("ASTROFED_PROFILE")
    fit(plain, epochs=4)
    assert torch.equal(weights(profiled), weights(plain))
    table, trace = sorted((tmp_path / "profiles").iterdir(), key=lambda path: path.suffix, reverse=True)
    head, *rest = table.read_text().splitlines()
    assert head.startswith("8 steps; peak of memory") and any("aten::addmm" in line for line in rest)
    assert json.loads(trace.read_text())["traceEvents"]
    with pytest.raises(ValidationError):
        Training.model_validate({"profile": "folder"})


@pytest.mark.parametrize("schedule", ["cosine", "linear", "exponential"])
def test_every_schedule_rises_then_falls_to_its_share(schedule: Any) -> None:
    training = Training(learning_rate=0.2, decay=0.1, schedule=schedule, warmup=3)
    rates = [learning_rate(training, number, 13) for number in range(1, 14)]
    assert rates[:4] == pytest.approx([0.05, 0.1, 0.15, 0.2]) and rates[-1] == pytest.approx(0.02)
    assert all(a > b for a, b in pairwise(rates[3:]))
    middle = {"cosine": 0.11, "linear": 0.11, "exponential": 0.2 * 0.1**0.5}[schedule]
    assert learning_rate(Training(learning_rate=0.2, decay=0.1, schedule=schedule), 6, 11) == pytest.approx(middle)
    assert learning_rate(Training(learning_rate=0.2, decay=0.1, schedule=schedule), 1, 1) == 0.2


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"precision": "bf16"}, "training.precision = 'bf16' has no place beside .* single precision; leave it out"),
        ({"checkpoint": True}, "training.checkpoint = True"),
        ({"accumulate": 2}, "training.accumulate = 2 .* privacy.micro_batch"),
        ({"optimizer": "sophia"}, "training.optimizer = 'sophia' .* without noise"),
        ({"optimizer": "muon"}, "training.optimizer = 'muon'"),
    ],
)
def test_what_privacy_can_t_be_promised_for_is_refused_by_name(keys: dict[str, Any], words: str) -> None:
    check_private(network(), Training(optimizer="lion"))
    with pytest.raises(NotWithPrivacy, match=words):
        check_private(network(), Training.model_validate(keys))


def test_second_derivatives_in_half_precision_are_refused() -> None:
    with pytest.raises(ValidationError, match="'sophia' needs second derivatives, which fp16 can't hold"):
        Training(optimizer="sophia", precision="fp16")
