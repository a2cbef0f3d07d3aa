"""scikit-learn's 1,797 handwritten digits as a federation, and a small convolutional network: work for benchmarks.

A participant's data is named "digits:3/100": share 3 of 100. Loaded as a plug-in file, as a user's own would be.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn

from astrofed.client.site import Site, SiteSummary
from astrofed.client.task import Statistics, Task, TrainInstruction, TrainOutcome
from astrofed.client.training import BatchSource, train_locally
from astrofed.shared import registry
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.base import Model
from astrofed.shared.plan import Plan, Section
from astrofed.simulations.bench.digits_sites import load_digits

Batch = tuple[Tensor, Tensor]  # images [batch, 1, 8, 8] in [0, 1]; labels [batch]


class UnknownShare(UserMistake):
    """A participant's data does not name a share of the digits."""


@dataclass(frozen=True)
class Share:
    """One participant's images; about a tenth of them, one at least, is held out."""

    images: Tensor  # [sample, 1, 8, 8] in [0, 1]
    labels: Tensor  # [sample]
    held_out: int  # how many at the end no training sees

    @property
    def training(self) -> Batch:
        """Images and labels to train on."""
        return self.images[: -self.held_out], self.labels[: -self.held_out]

    @property
    def evaluation(self) -> Batch:
        """Images and labels held out."""
        return self.images[-self.held_out :], self.labels[-self.held_out :]


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    images, labels = load_digits()
    order = np.random.default_rng(0).permutation(len(labels))  # as they come, neighbours share their writer
    return images[order].reshape(-1, 1, 8, 8), labels[order]


def share(name: str) -> Share:
    """Return the share that "digits:<index>/<count>" names; shares of one count are disjoint and cover all images.

    Raises:
        UnknownShare: another form, or a count that leaves a share fewer than two images.
    """
    index, _, count = name.removeprefix("digits:").partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count) <= 800):
        raise UnknownShare(f"data {name!r} is no share of the digits; expected digits:<index>/<count>, count up to 800")
    images, labels = (torch.from_numpy(array[int(index) :: int(count)].copy()) for array in _digits())
    return Share(images, labels, max(1, len(labels) // 10))


def shuffled(images: Tensor, labels: Tensor, size: int) -> BatchSource[Batch]:
    """Return a source of batches in an order that the generator draws anew for each epoch."""

    def source(generator: torch.Generator) -> Iterator[Batch]:
        order = torch.randperm(len(labels), generator=generator)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield images[rows], labels[rows]

    return source


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross entropy of the model's logits on a batch."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@registry.register("models", "digits-cnn")
class DigitsCNN(Model):
    """Two convolutions and a linear layer for images of 8 x 8; 9,930 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        )

    @classmethod
    def from_plan(cls, plan: Plan, options: Section) -> Self:
        """Build the network; nothing depends on the plan."""
        return cls()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [batch, 10] of images [batch, 1, 8, 8]."""
        logits: Tensor = self.layers(images)
        return logits


@registry.register("tasks", "digits")
class Digits(Task):
    """Learns to read handwritten digits."""

    def __init__(self, plan: Plan, options: BaseModel, site: Site) -> None:
        super().__init__(plan, options, site)
        self._share = share(str(site.data))
        self._batches = shuffled(*self._share.training, plan.training.batch_size)

    def summary(self) -> SiteSummary:
        """Count the images."""
        images, labels = self._share.images, self._share.labels
        content = images.numpy().tobytes() + labels.numpy().tobytes()
        return SiteSummary(
            name=self.site.name,
            role=self.site.role,
            num_examples=len(labels) - self._share.held_out,
            num_eval_examples=self._share.held_out,
            num_units=len(labels) - self._share.held_out,
            unit="image",
            fingerprint=hashlib.sha256(content).hexdigest(),
            description=f"{len(labels)} handwritten digits",
        )

    def train(self, model: nn.Module, statistics: Statistics, instruction: TrainInstruction) -> TrainOutcome:
        """Train for one round on the share's training images."""
        fit = train_locally(model, self._batches, cross_entropy, self.plan.training, instruction, self.plan.rounds)
        return TrainOutcome(num_examples=len(self._share.labels) - self._share.held_out, metrics={"loss": fit.loss})

    @torch.no_grad()
    def evaluate(self, model: nn.Module, statistics: Statistics, *, with_baselines: bool) -> dict[str, float]:
        """Return cross entropy and accuracy on the held-out images."""
        images, labels = self._share.evaluation
        logits = model.eval()(images)
        return {
            "loss": float(nn.functional.cross_entropy(logits, labels)),
            "accuracy": float((logits.argmax(dim=1) == labels).float().mean()),
        }
