"""One round of DP-SGD (Abadi et al. 2016, arXiv:1607.00133) for any model whose loss is given for one unit.

Each step draws every unit with the same probability (Poisson sampling), takes each drawn unit's own gradient, clips all
its parameters together, sums, adds Gaussian noise and divides by the expected, never the actual, number of units.
Clipping and averaging are Opacus'; noise and sampling come from a cryptographic generator. What doesn't depend on data
(weight decay, FedProx's penalty) stands outside the clipped sum and costs nothing.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from astrofed.client.privacy.accounting import Event
from astrofed.client.privacy.noise import Randomness
from astrofed.client.task import TrainInstruction
from astrofed.client.training import TrainingDiverged, learning_rate, make_optimizer
from astrofed.shared.errors import AstrofedError, UserMistake
from astrofed.shared.plan import Training
from astrofed.shared.seeds import torch_seeded

Units = tuple[Tensor, ...]
"""Tensors whose first axis counts privacy units: [unit, …] each."""
UnitLoss = Callable[[nn.Module, Units], Tensor]
"""Scalar loss of a model on units, of which there is one when it is asked for that unit's gradient."""
_ROUNDING = 1e-5  # float32 norms are off by less than this share: clipping to a little less keeps the bound itself


class CouplesUnits(UserMistake):
    """A layer of the model lets one unit's data into another unit's gradient."""


class ClippedTwice(UserMistake):
    """The plan clips gradients both per unit and as a whole."""


class WrongUnitGradients(AstrofedError):
    """Per-unit gradients that are not one for each unit."""


@dataclass(frozen=True)
class Mechanism:
    """What the steps of a round do, and so what they cost."""

    event: Event  # noise, sampling and number of steps
    clipping_norm: float


def sampling(training: Training, units: int) -> tuple[float, int]:
    """Return a round's sample rate, and its steps: as many as see each unit `epochs` times on average, or `max_steps`.

    A batch has `batch_size` units on average; where there are fewer units, every batch has all of them.
    """
    rate = min(1.0, training.batch_size / units)
    steps = max(1, round(training.epochs / rate))
    return rate, min(steps, training.max_steps or steps)


def check_private(model: nn.Module, training: Training) -> None:
    """Refuse what per-unit clipping can't bound.

    Raises:
        CouplesUnits: a layer normalises over the batch, or keeps statistics of it.
        ClippedTwice: `training.gradient_clip` is set.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) or getattr(layer, "track_running_stats", False):
            raise CouplesUnits(
                f"layer {name!r} ({type(layer).__name__}) mixes the units of a batch, so no unit's influence can be "
                "bounded; use GroupNorm or LayerNorm in its place, or remove the [privacy] section"
            )
    if training.gradient_clip is not None:
        raise ClippedTwice(
            f"training.gradient_clip = {training.gradient_clip:g} has no place beside [privacy]: there "
            "privacy.clipping_norm clips each unit's gradient; remove training.gradient_clip"
        )


def train_privately(
    model: nn.Module,
    units: Units,
    loss: UnitLoss,
    training: Training,
    instruction: TrainInstruction,
    rounds: int,
    mechanism: Mechanism,
    randomness: Randomness | None = None,
) -> None:
    """Train `model` in place for one round; the loss is not returned, since releasing it would cost privacy.

    Args:
        model: the global model; it comes back in evaluation mode, its gradients freed.
        units: the training data, one row a privacy unit.
        loss: see `UnitLoss`.
        training: the plan's section, for optimiser and learning rate.
        instruction: round, FedProx's mu, and a seed for the model's own draws (dropout) alone.
        rounds: how many rounds the run has, for the learning rate's cosine.
        mechanism: steps, noise and clipping.
        randomness: of sampling and noise; a fresh cryptographic generator by default.

    Raises:
        CouplesUnits, ClippedTwice: see `check_private`.
        TrainingDiverged: the weights left the finite range.
    """
    check_private(model, training)
    random = randomness if randomness is not None else Randomness()
    count, event = len(units[0]), mechanism.event
    optimizer = _optimizer(model, training, instruction, rounds, mechanism, event.sample_rate * count, random)
    model.train()
    draws = any(isinstance(layer, nn.modules.dropout._DropoutNd) for layer in model.modules())
    with torch_seeded(instruction.seed) if draws else nullcontext():
        for _ in range(event.steps):
            chosen = torch.from_numpy(random.uniform(count) < event.sample_rate)
            batch = tuple(tensor[chosen] for tensor in units)
            for parameter, gradients in zip(optimizer.params, unit_gradients(model, batch, loss), strict=True):
                parameter.grad_sample = gradients
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    model.eval()
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise TrainingDiverged(
            f"the weights left the finite range in round {instruction.round}; lower training.learning_rate "
            f"(now {training.learning_rate:g})"
        )


def unit_gradients(model: nn.Module, batch: Units, loss: UnitLoss) -> list[Tensor]:
    """Return each trainable parameter's gradients [unit, *parameter] of the loss of every single unit in `batch`.

    A unit whose gradient is not finite contributes zeros.

    Raises:
        WrongUnitGradients: the first axis is not that of the units.
    """
    trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if len(batch[0]) == 0:
        return [parameter.new_zeros((0, *parameter.shape)) for parameter in trainable.values()]
    module = _Loss(model, loss)

    def one(parameters: dict[str, Tensor], unit: Units) -> Tensor:
        alone = tuple(tensor.unsqueeze(0) for tensor in unit)
        value: Tensor = functional_call(module, {f"model.{name}": p for name, p in parameters.items()}, (alone,))
        return value

    per_unit = vmap(grad(one), in_dims=(None, 0), randomness="different")(trainable, batch)
    found = [per_unit[name] for name in trainable]
    for name, gradients in zip(trainable, found, strict=True):
        if gradients.shape != (len(batch[0]), *trainable[name].shape):
            raise WrongUnitGradients(
                f"gradients of {name!r} have the shape {tuple(gradients.shape)}; {len(batch[0])} units are in the batch"
            )
    finite = torch.stack([g.reshape(len(g), -1).isfinite().all(dim=1) for g in found]).all(dim=0)
    if bool(finite.all()):
        return found
    return [torch.where(finite.view(-1, *[1] * (g.ndim - 1)), g, torch.zeros_like(g)) for g in found]


class _Loss(nn.Module):
    """A model and its loss as one module, so that the model's parameters can be given from outside."""

    def __init__(self, model: nn.Module, loss: UnitLoss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Units) -> Tensor:
        return self._loss(self.model, batch)


class _NoisyOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimiser with noise from our own generator: added in float64, then rounded to the parameter's type."""

    def __init__(self, optimizer: torch.optim.Optimizer, mechanism: Mechanism, expected: float, random: Randomness):
        super().__init__(
            optimizer,
            noise_multiplier=mechanism.event.noise_multiplier,
            max_grad_norm=mechanism.clipping_norm * (1 - _ROUNDING),
            expected_batch_size=expected,
        )
        self._deviation = mechanism.event.noise_multiplier * mechanism.clipping_norm
        self._random = random

    def add_noise(self) -> None:
        """Add noise to the sum of clipped gradients; the result lies in each parameter's `grad`."""
        for parameter in self.params:
            noise = torch.from_numpy(self._random.normal(parameter.numel())).view_as(parameter)
            parameter.grad = (parameter.summed_grad.double() + self._deviation * noise).to(parameter.dtype)


def _optimizer(
    model: nn.Module,
    training: Training,
    instruction: TrainInstruction,
    rounds: int,
    mechanism: Mechanism,
    expected: float,
    random: Randomness,
) -> Any:
    rate = learning_rate(training, instruction.round, rounds)
    optimizer = _NoisyOptimizer(make_optimizer(model, training, rate), mechanism, expected, random)
    if instruction.proximal_mu:
        anchor = [parameter.detach().clone() for parameter in optimizer.params]

        def pull(_: DPOptimizer) -> None:
            for parameter, start in zip(optimizer.params, anchor, strict=True):
                parameter.grad.add_(parameter.detach() - start, alpha=instruction.proximal_mu)

        optimizer.attach_step_hook(pull)
    return optimizer
