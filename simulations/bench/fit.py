"""What training through a LightningModule's hooks costs beyond a client's plain loop, and what a Trainer would cost."""

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import nn

from astrofed.client.task import TrainInstruction
from astrofed.client.training import LocalRound, train_locally
from astrofed.shared.models.base import build_model
from astrofed.simulations.bench.bare import BareDigits
from astrofed.simulations.bench.digits import Batch, cross_entropy, share, shuffled
from astrofed.simulations.bench.result import Row, Target
from astrofed.simulations.bench.work import plan_for

WORK = "digits-cnn, one fit"


def fit_rows(repeats: int) -> list[Row]:
    """Return rows for one client's fit of 18 images: ours, the plain loop's, and that of Lightning's own Trainer."""
    plan = plan_for("digits-cnn", 100, 1)
    images, labels = share(plan.participants[0].data).training
    source = shuffled(images, labels, plan.training.batch_size)
    model, plain = build_model(plan), BareDigits(plan)
    instruction = TrainInstruction(round=1, seed=1)

    def ours() -> object:
        return train_locally(model, source, cross_entropy, plan.training, instruction, rounds=1)

    def trainer() -> None:
        _fit_with_trainer(LocalRound(model, cross_entropy, plan.training, 0.0, 0.05), source)

    ways: dict[str, Callable[[], object]] = {
        "astrofed train_locally": ours,
        "bare loop": lambda: plain.train_client(0),
        "Lightning Trainer": trainer,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, fit in ways.items():
            began = time.perf_counter()
            fit()
            times[name].append(time.perf_counter() - began)
    bare = times["bare loop"][1:]
    rows = []
    for name, measured in times.items():
        pairs = list(zip(measured[1:], bare, strict=True))
        overhead = statistics.median(a - b for a, b in pairs)
        rows.append(
            Row(
                WORK,
                1,
                name,
                seconds_per_round=statistics.median(measured[1:]),
                timings=repeats,
                overhead_s=overhead,
                ratio_to_bare=statistics.median(a / b for a, b in pairs),
            )
        )
    overhead = rows[0].overhead_s or 0.0
    target = Target("training through a LightningModule costs under 10 ms a round", 1e3 * overhead, overhead < 0.01)
    return [replace(rows[0], targets=(target,)), *rows[1:]]


def _fit_with_trainer(module: nn.Module, source: Callable[[torch.Generator], Iterator[Batch]]) -> None:
    """Fit as Lightning would: a bare trainer without loggers, checkpoints or progress."""
    from pytorch_lightning import LightningModule, Trainer

    class Epochs:
        def __iter__(self) -> Iterator[Batch]:
            return source(torch.Generator().manual_seed(1))

    assert isinstance(module, LightningModule)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(accelerator="cpu", barebones=True, max_epochs=1).fit(module, train_dataloaders=Epochs())
