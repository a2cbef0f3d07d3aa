"""The one local training loop: a round's epochs over a site's batches, driven through a LightningModule's hooks.

Stateless between rounds: each round starts a fresh optimiser, takes its learning rate from the plan's cosine over the
rounds, and draws all randomness from the instruction's seed. A Trainer of Lightning spends milliseconds on a fit, more
than a small site's whole round; the loop here calls the same hooks in the same order, with the same weights to the bit.
"""

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from astrofed.client.devices import seeded_on, to_device
from astrofed.client.fitting import Pieces, Split
from astrofed.client.optimizers import make_optimizer, one_call_step, optimizer_for
from astrofed.client.precision import Profile, checkpointed, computed_as, deterministic, profiling
from astrofed.client.sharing import current_team
from astrofed.client.stepping import Stepper
from astrofed.client.task import TrainInstruction
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.base import Model
from astrofed.shared.plan import Training
from astrofed.shared.slots import parameters_of

B = TypeVar("B")
BatchSource = Callable[[torch.Generator], Iterator[B]]
"""Gives one epoch's batches, in the order and with the augmentations that the generator draws."""
Loss = Callable[[nn.Module, B], Tensor]

_CPU = torch.device("cpu")
_without_draws: WeakSet[nn.Module] = WeakSet()  # models seen to train without torch's global generator, on the CPU


class TrainingDiverged(UserMistake):
    """The training loss left the finite range."""


@dataclass(frozen=True)
class LocalFit:
    """What one round of local training came to."""

    loss: float  # mean over all steps, without the proximal term
    steps: int


def learning_rate(training: Training, round_number: int, rounds: int) -> float:
    """Return the learning rate of a round (from 1): from `learning_rate` down to its share `decay` by `schedule`.

    In the first `warmup` rounds it rises linearly, and the schedule runs over the rest.
    """
    if round_number <= training.warmup:
        return training.learning_rate * round_number / (training.warmup + 1)
    rest = rounds - training.warmup
    progress = min((round_number - training.warmup - 1) / (rest - 1), 1.0) if rest > 1 else 0.0
    if training.schedule == "linear":
        return training.learning_rate * (1 - (1 - training.decay) * progress)
    if training.schedule == "exponential":
        return training.learning_rate * float(training.decay**progress)
    share = training.decay + (1 - training.decay) * 0.5 * (1 + math.cos(math.pi * progress))
    return training.learning_rate * share


def train_locally(
    model: nn.Module,
    batches: BatchSource[B],
    loss: Loss[B],
    training: Training,
    instruction: TrainInstruction,
    rounds: int,
    *,
    split: Split[B] | None = None,
    at_once: int = 1,
) -> LocalFit:
    """Train `model` in place for one round and return the mean loss.

    Where its weights lie on another device than the CPU, so does the loss: batches are moved there. Where training is
    shared (`client.sharing`), this process takes its rows of each batch; all end with the same weights.

    A model or loss that draws from torch's global generator (dropout) finds it seeded, and its threads take turns; one
    whose first round drew nothing trains on any number of threads at once.

    Args:
        model: the global model; it comes back in training mode, its gradients freed.
        batches: called once an epoch with the round's generator.
        loss: scalar loss of the model on a batch.
        training: the plan's section; `max_steps` ends the round early.
        instruction: round, seed, and FedProx's mu: adds mu/2 · |w − w_global|² (Li et al. 2020, section 3.2).
        rounds: how many rounds the run has, for the learning rate's cosine.
        split: how batches are taken in pieces where memory can't hold one; None: never.
        at_once: how many clients train on this machine at the same time.

    Raises:
        TrainingDiverged: the loss became NaN or infinite.
        SampleTooLarge: not even one sample of a batch fits into memory.
    """
    splits = split is not None and training.optimizer != "sophia"  # whose curvature is of a whole batch
    team = current_team()
    if team is not None and not (splits and _is_shared(model)):
        if team.rank:
            return LocalFit(0.0, 0)  # which nobody looks at: the first process answers
        team.say_once("steps of this plan can't be shared (its loss is no mean over samples): one device trains alone")
        team = None
    rate = learning_rate(training, instruction.round, rounds)
    module = _take(model, loss, training, instruction.proximal_mu, rate)
    generator = torch.Generator().manual_seed(instruction.seed)
    weights = module.work.weights
    device = weights[0].device if weights and not weights[0].is_cpu else _CPU
    source = batches if device is _CPU else _moved(batches, device)
    if not model.training:
        model.train()
    if isinstance(model, Model):
        model.begin_round()
    pieces = None
    if split is not None and splits:
        draws = model not in _without_draws
        pieces = Pieces(
            split, model, partial(loss, module.work.network), training, at_once=at_once, draws=draws, team=team
        )
    try:
        with (
            checkpointed(model, training),
            deterministic(training),
            profiling(instruction.round, instruction.seed) as profile,
        ):
            if model in _without_draws:
                steps = _fit(module, source, training, generator, profile, pieces)
            else:
                with seeded_on(device, instruction.seed + (team.rank if team is not None else 0)):
                    before = torch.get_rng_state()
                    steps = _fit(module, source, training, generator, profile, pieces)
                    if device is _CPU and torch.equal(torch.get_rng_state(), before):
                        _without_draws.add(model)
    finally:
        for weight in module.work.weights:
            weight.grad = None
    losses = module.work.losses if team is None else team.add_losses(module.work.losses)
    module.forget()
    _idle.append(module)
    mean = sum(value.item() for value in losses) / len(losses) if losses else 0.0
    if not math.isfinite(mean):
        raise TrainingDiverged(
            f"the training loss became {mean} in round {instruction.round}; lower training.learning_rate "
            f"(now {training.learning_rate:g}) or set training.gradient_clip"
        )
    return LocalFit(loss=mean, steps=steps)


class _Work(Generic[B]):
    """What a round needs besides the model; apart from it because attributes of modules are slow to set."""

    def __init__(self, model: nn.Module, loss: Loss[B], training: Training, mu: float, rate: float) -> None:
        self.loss, self.training, self.mu, self.rate, self.weights = loss, training, mu, rate, parameters_of(model)
        self.losses: list[Tensor] = []
        self.network = computed_as(model, training)
        self.anchor = [weight.detach().clone() for weight in self.weights] if mu else []

    def add_proximal_gradient(self) -> None:
        if self.mu:
            with torch.no_grad():
                for weight, anchor in zip(self.weights, self.anchor, strict=True):
                    if weight.grad is not None:
                        weight.grad.add_(weight - anchor, alpha=self.mu)

    def clip_gradients(self) -> None:
        if self.training.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.weights, self.training.gradient_clip)


class LocalRound(LightningModule, Generic[B]):
    """One participant's training in one round; a Trainer of Lightning's can drive it as well."""

    model: nn.Module
    work: _Work[B]

    def __init__(self, model: nn.Module, loss: Loss[B], training: Training, proximal_mu: float, rate: float) -> None:
        super().__init__()
        self.begin(model, loss, training, proximal_mu, rate)

    def begin(self, model: nn.Module, loss: Loss[B], training: Training, proximal_mu: float, rate: float) -> None:
        """Forget the round before and prepare the next one, maybe another participant's."""
        # As attributes are set that modules don't look at, which takes them several microseconds.
        self._modules["model"] = model
        self.__dict__["work"] = _Work(model, loss, training, proximal_mu, rate)

    def forget(self) -> None:
        """Let go of the model and the site's data."""
        del self._modules["model"], self.__dict__["work"]

    def training_step(self, batch: B, _index: int) -> Tensor:
        """Return the loss of a batch, without the proximal term."""
        value = self.work.loss(self.work.network, batch)
        self.work.losses.append(value.detach())
        return value

    def on_after_backward(self) -> None:
        """Add the gradient of FedProx's term, mu (w − w_global), to that of every weight that the loss reaches."""
        self.work.add_proximal_gradient()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Scale all gradients together so that their norm is at most the plan's `gradient_clip`."""
        self.work.clip_gradients()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the plan's optimiser at this round's learning rate."""
        if self.work.training.optimizer == "muon":
            return make_optimizer(self.model, self.work.training, self.work.rate)
        return optimizer_for(self.work.weights, self.work.training, self.work.rate)

    def transfer_batch_to_device(self, batch: B, _device: torch.device, _dataloader_idx: int) -> B:
        """Leave batches as they are: a batch may be of any type."""
        return batch


_idle: deque[LocalRound[Any]] = deque(maxlen=64)  # making a LightningModule takes longer than a small step


def _take(model: nn.Module, loss: Loss[B], training: Training, mu: float, rate: float) -> LocalRound[B]:
    try:
        module: LocalRound[B] = _idle.pop()
    except IndexError:
        return LocalRound(model, loss, training, mu, rate)
    module.begin(model, loss, training, mu, rate)
    return module


def _is_shared(model: nn.Module) -> bool:
    """Whether a model is the same for every batch, so that processes may see different rows; not if it counts them."""
    return not isinstance(model, Model) or type(model).begin_round is Model.begin_round


def _moved(batches: BatchSource[B], device: torch.device) -> BatchSource[B]:
    def source(generator: torch.Generator) -> Iterator[B]:
        return (to_device(batch, device) for batch in batches(generator))

    return source


def _fit(
    module: LocalRound[B],
    batches: BatchSource[B],
    training: Training,
    generator: torch.Generator,
    profile: Profile | None,
    pieces: Pieces[B] | None,
) -> int:
    """Run the round's epochs and return the number of steps."""
    plain = training.accumulate == 1 and training.precision != "fp16" and training.optimizer != "sophia"
    optimizer, step = None, one_call_step(module.work.weights, training, module.work.rate)
    if step is None or not plain:
        optimizer = module.configure_optimizers()
        step = partial(inspect.unwrap(type(optimizer).step), optimizer)  # without hooks: nobody else knows it

    def in_parts() -> Stepper[B]:
        return Stepper(module, optimizer or module.configure_optimizers(), generator, pieces)

    stepper = None if plain else in_parts()
    index = 0
    for _ in range(training.epochs):
        for batch in batches(generator):
            if pieces is not None and stepper is None:
                if pieces.ample(batch):
                    pieces = None
                else:
                    stepper = in_parts()
            if stepper is not None:
                done = stepper.feed(batch)
            else:
                for weight in module.work.weights:
                    weight.grad = None  # what zero_grad does, without its fixed cost
                module.training_step(batch, index).backward()  # type: ignore[no-untyped-call]
                module.on_after_backward()
                module.work.clip_gradients()
                with torch.no_grad():
                    step()
                done = True
            if profile is not None:
                profile.step_done()
            index += done
            if index == training.max_steps:
                return index
        if stepper is not None:
            index += stepper.flush()  # no step holds batches of two epochs
            if index == training.max_steps:
                return index
    return index
