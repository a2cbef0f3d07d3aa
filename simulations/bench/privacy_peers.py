"""One step of training in each way that is compared: plain SGD, ours, and Opacus in four modes, all on a whole batch.

Opacus is given its batch as it is, without its data loader, and draws noise from torch's generator, which is not
cryptographic; ours samples, draws from ChaCha20 and rounds to a grid. Every way lets its gradients go after each step,
so that they are part of what a step takes in memory.
"""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping, wrap_model
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import nn

from astrofed.client.privacy.clipping import Flat
from astrofed.client.privacy.dpsgd import Mechanism, train_privately
from astrofed.client.privacy.units import Population, Rows
from astrofed.client.task import TrainInstruction
from astrofed.shared.plan import Training
from astrofed.shared.privacy.events import Event
from astrofed.shared.seeds import torch_seeded
from astrofed.simulations.bench.privacy_work import Work

MODES = ("hooks", "functorch", "ew", "ghost")
PLAIN, OURS = "plain SGD", "astrofed"
NORM, RATE = 1.0, 0.1
Steps = Callable[[int], None]
"""Takes so many steps."""


def fresh(work: Work) -> nn.Module:
    """Return the network with its first weights, the same each time."""
    with torch_seeded(1):
        return work.make().train()


def plain(work: Work) -> Steps:
    """Return plain SGD."""
    model = fresh(work)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, fused=True)

    def steps(count: int) -> None:
        for _ in range(count):
            work.loss(model, work.batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps


def ours(work: Work, model: nn.Module, noise: float = 1.0, units: Population | None = None) -> Steps:
    """Return DP-SGD as sites do it, with all units in each step."""
    population = units if units is not None else Rows(work.batch, work.loss)
    training = Training(optimizer="sgd", learning_rate=RATE)

    def steps(count: int) -> None:
        mechanism = Mechanism(Event(noise, 1.0, count), Flat(NORM))
        train_privately(model, population, training, TrainInstruction(round=1, seed=1), 1, mechanism)

    return steps


def opacus(work: Work, model: nn.Module, mode: str, noise: float = 1.0) -> Steps:
    """Return DP-SGD by Opacus in one of its modes."""
    units = len(work.batch[0])
    settings = {"noise_multiplier": noise, "max_grad_norm": NORM, "expected_batch_size": units}
    sgd = torch.optim.SGD(model.parameters(), lr=RATE, fused=True)
    if mode == "ghost":
        wrapped = GradSampleModuleFastGradientClipping(model, max_grad_norm=NORM, use_ghost_clipping=True)
        optimizer = DPOptimizerFastGradientClipping(sgd, **settings)
        criterion = DPLossFastGradientClipping(wrapped, optimizer, work.criterion)
    else:
        wrapped, optimizer, criterion = wrap_model(model, grad_sample_mode=mode), DPOptimizer(sgd, **settings), None

    def steps(count: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(count):
                output = wrapped(*work.batch[:-1])
                (criterion or work.criterion)(output, work.batch[-1]).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    return steps


def private_ways(work: Work) -> dict[str, Callable[..., Steps]]:
    """Return ours and Opacus' modes by name, each of which is given a model."""
    ways: dict[str, Callable[..., Steps]] = {f"Opacus {mode}": partial(opacus, work, mode=mode) for mode in MODES}
    return {OURS: partial(ours, work), **ways}


def difference(work: Work, take: Callable[[nn.Module], Steps], reference: nn.Module) -> float:
    """Return how far one step without noise ends from the reference, as a share of the reference's step."""
    start, model = fresh(work), fresh(work)
    take(model)(1)
    pairs = zip(start.parameters(), model.parameters(), reference.parameters(), strict=True)
    moved = [(own - right, right - before) for before, own, right in pairs]
    off, step = (torch.cat([pair[i].detach().flatten() for pair in moved]).norm() for i in (0, 1))
    return float(off / step)
