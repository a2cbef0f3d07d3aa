"""One round of DP-SGD (Abadi et al. 2016, arXiv:1607.00133) for any model whose loss is given for one unit.

Each step draws every unit with the same probability (Poisson sampling), takes each drawn unit's own gradient, clips it,
sums, adds Gaussian noise and divides by the expected, never the actual, number of units; where none was drawn, the step
is noise alone. Sites that share noise all divide by the plan's batch size, so that what they share cancels in the mean.
Noise and sampling come from a cryptographic generator. What doesn't depend on data (weight decay,
FedProx's penalty) stands outside the clipped sum and costs nothing.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from opacus.optimizers import DPOptimizerFastGradientClipping
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors

from astrofed.client.devices import device_of, seeded_on
from astrofed.client.optimizers import make_optimizer
from astrofed.client.privacy.clipping import Flat
from astrofed.client.privacy.refusals import buffers, check_buffers, check_private
from astrofed.client.privacy.shared_noise import SharedNoise
from astrofed.client.privacy.units import Chosen, Population
from astrofed.client.task import TrainInstruction
from astrofed.client.training import TrainingDiverged, learning_rate
from astrofed.shared.plan import Training
from astrofed.shared.privacy.events import Event
from astrofed.shared.privacy.noise import Randomness


@dataclass(frozen=True)
class Mechanism:
    """What the steps of a round do, and so what they cost."""

    event: Event  # noise, sampling and number of steps
    clipping: Flat  # or one of its kinds
    shared: SharedNoise | None = None  # how the noise is shared with other sites, if it is


def sampling(training: Training, units: int) -> tuple[float, int]:
    """Return a round's sample rate, and its steps: as many as see each unit `epochs` times on average, or `max_steps`.

    A batch has `batch_size` units on average; where there are fewer units, every batch has all of them.
    """
    rate = min(1.0, training.batch_size / units)
    steps = max(1, round(training.epochs / rate))
    return rate, min(steps, training.max_steps or steps)


def train_privately(
    model: nn.Module,
    units: Population,
    training: Training,
    instruction: TrainInstruction,
    rounds: int,
    mechanism: Mechanism,
    randomness: Randomness | None = None,
) -> None:
    """Train `model` in place for one round; the loss is not returned, since releasing it would cost privacy.

    Args:
        model: the global model; it comes back in evaluation mode, its gradients freed.
        units: the privacy units to train on, with their loss.
        training: the plan's section, for optimiser and learning rate.
        instruction: round, FedProx's mu, and a seed for the model's own draws (dropout) alone.
        rounds: how many rounds the run has, for the learning rate's cosine.
        mechanism: steps, noise and clipping.
        randomness: of sampling and noise; a fresh cryptographic generator by default.

    Raises:
        CouplesUnits, NotWithPrivacy: see `check_private`.
        KeepsData: the model wrote into its buffers.
        TrainingDiverged: the weights left the finite range.
    """
    check_private(model, training)
    random = randomness if randomness is not None else Randomness()
    event, clipping, before = mechanism.event, mechanism.clipping, buffers(model)
    expected = event.sample_rate * len(units) if mechanism.shared is None else float(training.batch_size)
    optimizer = _optimizer(model, training, instruction, rounds, mechanism, expected, random)
    model.train()
    draws = any(isinstance(layer, nn.modules.dropout._DropoutNd) for layer in model.modules())
    with seeded_on(device_of(model), instruction.seed) if draws else nullcontext():
        for _ in range(event.steps):
            chosen = np.flatnonzero(random.uniform(len(units)) < event.sample_rate)
            optimizer.take(*_clipped_sum(model, units, chosen, clipping))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            clipping.end_step(event.noise_multiplier, expected, random)
    model.eval()
    check_buffers(model, before)
    if not all(_is_finite(parameter.detach()) for parameter in model.parameters()):
        raise TrainingDiverged(
            f"the weights left the finite range in round {instruction.round}; lower training.learning_rate "
            f"(now {training.learning_rate:g})"
        )


def _is_finite(values: Tensor) -> bool:
    """Whether all values are, found without another tensor as large."""
    return not values.numel() or all(bool(end.isfinite()) for end in torch.aminmax(values))


def clipped_sum(model: nn.Module, units: Population, chosen: Chosen, clipping: Flat) -> list[Tensor]:
    """Return, for each trainable parameter, the sum of the chosen units' gradients, each clipped; zeros for none."""
    return _clipped_sum(model, units, chosen, clipping)[1]


def _clipped_sum(model: nn.Module, units: Population, chosen: Chosen, clipping: Flat) -> tuple[Tensor, list[Tensor]]:
    """Return all parameters' sums one after the other [number], and the parts of that which are each one's."""
    weights, found = [parameter for parameter in model.parameters() if parameter.requires_grad], None
    for gradients in units.gradients(model, chosen):
        factors = clipping.factors(gradients.squares)
        found = found or _zeros(weights)  # not before: what finding gradients takes is free again now
        gradients.add_weighted(factors, found[1])
    return found or _zeros(weights)


def _zeros(weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    numbers = weights[0].new_zeros(sum(weight.numel() for weight in weights))
    return numbers, list(_unflatten_dense_tensors(numbers, weights))  # type: ignore[no-untyped-call]


class _NoisyOptimizer(DPOptimizerFastGradientClipping):  # type: ignore[misc]
    """Opacus' optimiser for sums that are clipped already, with noise from our own generator.

    Each parameter's `summed_grad` is a part of `sums` [number], in which noise is added to all of them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, mechanism: Mechanism, expected: float, random: Randomness):
        super().__init__(
            optimizer,
            noise_multiplier=mechanism.event.noise_multiplier,
            max_grad_norm=mechanism.clipping.norm,
            expected_batch_size=expected,
        )
        self._clipping, self._random, self._shared = mechanism.clipping, random, mechanism.shared

    def take(self, sums: Tensor, parts: list[Tensor]) -> None:
        """Take the sums of the next step [number], and the parts of them that are each parameter's."""
        self.sums = sums
        for parameter, total in zip(self.params, parts, strict=True):
            parameter.summed_grad = total

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Let the sums go as well."""
        super().zero_grad(set_to_none)
        del self.sums

    def accumulate(self) -> None:
        """Do nothing: sums over micro-batches lie in each parameter's `summed_grad` already."""

    def add_noise(self) -> None:
        """Add noise to the sum of clipped gradients, where it lies; it then is each parameter's `grad`."""
        multiplier = self._clipping.noise_multiplier(self.noise_multiplier, self.expected_batch_size)
        sums = self.sums.cpu()  # the same memory on a CPU, where the cryptographic generator is
        if self._shared is not None:
            self._shared.hide(sums, multiplier * self._clipping.norm, self._random)
        else:
            self._random.hide(sums, multiplier * self._clipping.norm)
        if sums is not self.sums:
            self.sums.copy_(sums)
        for parameter in self.params:
            parameter.grad = parameter.summed_grad

    def scale_grad(self) -> None:
        """Divide all noisy sums, where they lie, by the expected number of units."""
        self.sums /= self.expected_batch_size


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

        def pull(_: DPOptimizerFastGradientClipping) -> None:
            for parameter, start in zip(optimizer.params, anchor, strict=True):
                parameter.grad.add_(parameter.detach() - start, alpha=instruction.proximal_mu)

        optimizer.attach_step_hook(pull)
    return optimizer
