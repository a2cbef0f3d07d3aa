"""The one local training loop: a round's epochs over a site's batches, driven through a LightningModule's hooks.

Stateless between rounds: each round starts a fresh optimiser, takes its learning rate from the plan's cosine over the
rounds, and draws all randomness from the instruction's seed. A Trainer of Lightning spends milliseconds on a fit, more
than a small site's whole round; the loop here calls the same hooks in the same order, with the same weights to the bit.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakSet

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from astrofed.client.task import TrainInstruction
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Training
from astrofed.shared.seeds import torch_seeded

B = TypeVar("B")
BatchSource = Callable[[torch.Generator], Iterator[B]]
"""Gives one epoch's batches, in the order and with the augmentations that the generator draws."""
Loss = Callable[[nn.Module, B], Tensor]

_without_draws: WeakSet[nn.Module] = WeakSet()  # models that were seen to train without torch's global generator


class TrainingDiverged(UserMistake):
    """The training loss left the finite range."""


@dataclass(frozen=True)
class LocalFit:
    """What one round of local training came to."""

    loss: float  # mean over all steps, without the proximal term
    steps: int


def learning_rate(training: Training, round_number: int, rounds: int) -> float:
    """Return the learning rate of a round (from 1): from `learning_rate` down to its share `decay` along a cosine."""
    progress = (round_number - 1) / (rounds - 1) if rounds > 1 else 0.0
    share = training.decay + (1 - training.decay) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return training.learning_rate * share


def make_optimizer(model: nn.Module, training: Training, rate: float) -> torch.optim.Optimizer:
    """Return the plan's optimiser over the model's trainable parameters.

    Fused kernels: SGD gives the same bits as torch's default, Adam is 3 to 5 times faster; both give the same bits
    on any number of threads.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    decay = training.weight_decay
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, fused=True)
    if training.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=True)


def train_locally(
    model: nn.Module,
    batches: BatchSource[B],
    loss: Loss[B],
    training: Training,
    instruction: TrainInstruction,
    rounds: int,
) -> LocalFit:
    """Train `model` in place for one round and return the mean loss.

    A model or loss that draws from torch's global generator (dropout) finds it seeded, and its threads take turns; one
    whose first round drew nothing trains on any number of threads at once.

    Args:
        model: the global model; it comes back in evaluation mode, its gradients freed.
        batches: called once an epoch with the round's generator.
        loss: scalar loss of the model on a batch.
        training: the plan's section; `max_steps` ends the round early.
        instruction: round, seed, and FedProx's mu: adds mu/2 · |w − w_global|² (Li et al. 2020, section 3.2).
        rounds: how many rounds the run has, for the learning rate's cosine.

    Raises:
        TrainingDiverged: the loss became NaN or infinite.
    """
    rate = learning_rate(training, instruction.round, rounds)
    module = LocalRound(model, loss, training, instruction.proximal_mu, rate)
    generator = torch.Generator().manual_seed(instruction.seed)
    model.train()
    if model in _without_draws:
        _fit(module, batches, training, generator)
    else:
        with torch_seeded(instruction.seed):
            before = torch.get_rng_state()
            _fit(module, batches, training, generator)
            if torch.equal(torch.get_rng_state(), before):
                _without_draws.add(model)
    model.eval()
    model.zero_grad(set_to_none=True)
    mean = float(torch.stack(module.losses).mean()) if module.losses else 0.0
    if not math.isfinite(mean):
        raise TrainingDiverged(
            f"the training loss became {mean} in round {instruction.round}; lower training.learning_rate "
            f"(now {training.learning_rate:g}) or set training.gradient_clip"
        )
    return LocalFit(loss=mean, steps=len(module.losses))


class LocalRound(LightningModule, Generic[B]):
    """One participant's training in one round; a Trainer of Lightning's can drive it as well."""

    def __init__(self, model: nn.Module, loss: Loss[B], training: Training, proximal_mu: float, rate: float) -> None:
        super().__init__()
        self.model = model
        self.losses: list[Tensor] = []
        self._loss, self._training, self._rate, self._mu = loss, training, rate, proximal_mu
        self._anchor = [p.detach().clone() for p in model.parameters()] if proximal_mu else []

    def training_step(self, batch: B, _index: int) -> Tensor:
        """Return the loss of a batch, without the proximal term."""
        value = self._loss(self.model, batch)
        self.losses.append(value.detach())
        return value

    @torch.no_grad()
    def on_after_backward(self) -> None:
        """Add the gradient of FedProx's term, mu (w − w_global), to that of every weight that the loss reaches."""
        if self._mu:
            for parameter, anchor in zip(self.model.parameters(), self._anchor, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - anchor, alpha=self._mu)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Scale all gradients together so that their norm is at most the plan's `gradient_clip`."""
        if self._training.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._training.gradient_clip)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the plan's optimiser at this round's learning rate."""
        return make_optimizer(self.model, self._training, self._rate)

    def transfer_batch_to_device(self, batch: B, _device: torch.device, _dataloader_idx: int) -> B:
        """Leave batches as they are: a batch may be of any type."""
        return batch


def _fit(module: LocalRound[B], batches: BatchSource[B], training: Training, generator: torch.Generator) -> None:
    optimizer = module.configure_optimizers()
    index = 0
    for _ in range(training.epochs):
        for batch in batches(generator):
            optimizer.zero_grad(set_to_none=True)
            module.training_step(batch, index).backward()  # type: ignore[no-untyped-call]
            module.on_after_backward()
            module.configure_gradient_clipping(optimizer)
            optimizer.step()
            index += 1
            if index == training.max_steps:
                return
