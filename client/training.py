"""The one local training loop: a round's epochs over a site's batches, through a bare PyTorch Lightning trainer.

Stateless between rounds: each round starts a fresh optimiser, takes its learning rate from the plan's cosine over the
rounds, and draws all randomness from the instruction's seed. The trainer writes no files, prints nothing, installs no
signal handlers and lets an interrupt through, so it runs in any thread of any program.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from astrofed.client.task import TrainInstruction
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Training
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.strategies.launchers.launcher import _Launcher
from torch import Tensor, nn

B = TypeVar("B")
BatchSource = Callable[[torch.Generator], Iterator[B]]
"""Gives one epoch's batches, in the order and with the augmentations that the generator draws."""
Loss = Callable[[nn.Module, B], Tensor]


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
    """Return the plan's optimiser over the model's trainable parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, weight_decay=training.weight_decay)
    cls = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return cls(parameters, lr=rate, weight_decay=training.weight_decay)


def train_locally(
    model: nn.Module,
    batches: BatchSource[B],
    loss: Loss[B],
    training: Training,
    instruction: TrainInstruction,
    rounds: int,
) -> LocalFit:
    """Train `model` in place for one round and return the mean loss.

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
    module = _Round(model, loss, training, instruction, learning_rate(training, instruction.round, rounds))
    generator = torch.Generator().manual_seed(instruction.seed)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(instruction.seed)
        _fit(_quiet_trainer(training), module, _Epochs(batches, generator))
    model.eval()
    model.zero_grad(set_to_none=True)
    values = torch.stack(module.losses) if module.losses else torch.zeros(1)
    mean = float(values.mean())
    if not math.isfinite(mean):
        raise TrainingDiverged(
            f"the training loss became {mean} in round {instruction.round}; lower training.learning_rate "
            f"(now {training.learning_rate:g}) or set training.gradient_clip"
        )
    return LocalFit(loss=mean, steps=len(module.losses))


class _Epochs(Generic[B]):
    """An iterable that asks for new batches whenever it is iterated."""

    def __init__(self, batches: BatchSource[B], generator: torch.Generator) -> None:
        self._batches, self._generator = batches, generator

    def __iter__(self) -> Iterator[B]:
        return self._batches(self._generator)


class _Round(LightningModule, Generic[B]):
    """One participant's training in one round, as Lightning wants it."""

    def __init__(
        self, model: nn.Module, loss: Loss[B], training: Training, instruction: TrainInstruction, rate: float
    ) -> None:
        super().__init__()
        self.model = model
        self.losses: list[Tensor] = []
        self._loss, self._training, self._rate = loss, training, rate
        self._mu = instruction.proximal_mu
        self._anchor = [p.detach().clone() for p in model.parameters()] if self._mu else []

    def training_step(self, batch: B, _index: int) -> Tensor:
        value = self._loss(self.model, batch)
        self.losses.append(value.detach())
        if self._mu:
            pairs = zip(self.model.parameters(), self._anchor, strict=True)
            value = value + 0.5 * self._mu * torch.stack([(p - a).square().sum() for p, a in pairs]).sum()
        return value

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, self._training, self._rate)

    def transfer_batch_to_device(self, batch: B, _device: torch.device, _dataloader_idx: int) -> B:
        return batch


class _Interrupted(BaseException):
    """Carries an interrupt past Lightning, which would ignore SIGINT from then on and exit the process."""


class _DirectLauncher(_Launcher):
    @property
    def is_interactive_compatible(self) -> bool:
        return True

    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("trainer", None)
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt as interrupt:
            raise _Interrupted from interrupt

    def kill(self, signum: Any) -> None:
        """Nothing was launched."""


class _DirectStrategy(SingleDeviceStrategy):
    def _configure_launcher(self) -> None:
        self._launcher = _DirectLauncher()


def _quiet_trainer(training: Training) -> Trainer:
    for name in ("pytorch_lightning", "lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # torch deprecates a class that Lightning still builds; the filter is narrow, and setting it again changes nothing.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
    trainer = Trainer(
        strategy=_DirectStrategy(device="cpu"),
        barebones=True,
        max_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        gradient_clip_val=training.gradient_clip,
        use_distributed_sampler=False,
    )
    # Signals belong to the program that runs the round; Lightning has no public switch for its own handlers.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _fit(trainer: Trainer, module: LightningModule, epochs: Any) -> None:
    try:
        trainer.fit(module, train_dataloaders=epochs)
    except _Interrupted:
        raise KeyboardInterrupt from None
