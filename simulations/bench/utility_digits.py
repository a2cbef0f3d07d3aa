"""The digits as sites with privacy: 1,437 images shared out at random, 360 others to test on, a linear model.

A participant's data is named "digits-private:2/3/7": site 2 of 3, images put in order by seed 7. Loaded as a plug-in.
"""

import hashlib
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from astrofed.client.privacy.gradients import Units
from astrofed.client.privacy.protection import Protection
from astrofed.client.privacy.units import Rows
from astrofed.client.site import Site, SiteSummary
from astrofed.client.task import Statistics, Task, TrainInstruction, TrainOutcome
from astrofed.shared import registry
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.base import Model
from astrofed.shared.plan import Plan, Section
from astrofed.simulations.bench.digits import Batch
from astrofed.simulations.bench.digits_sites import CLASSES, PIXELS, TRAINING, load_digits

GREY = 0.3  # taken off each pixel, so that an image's length says less


class NeedsPrivacy(UserMistake):
    """The plan has no [privacy] section, which this task is for."""


def split(seed: int) -> tuple[Batch, Batch]:
    """Return the images [sample, 64] and labels [sample] to train on, and those to test on, in a seed's order."""
    images, labels = load_digits()
    order = np.random.default_rng(seed).permutation(len(labels))
    shown, named = torch.from_numpy(images[order] - np.float32(GREY)), torch.from_numpy(labels[order])
    return (shown[:TRAINING], named[:TRAINING]), (shown[TRAINING:], named[TRAINING:])


def cross_entropy(model: nn.Module, batch: Units) -> Tensor:
    """Return the mean cross entropy of the model's logits on images and labels."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@torch.no_grad()
def accuracy(model: nn.Module, batch: Batch) -> float:
    """Return the percentage of images that are read right."""
    return float(100 * (model.eval()(batch[0]).argmax(dim=1) == batch[1]).float().mean())


@registry.register("models", "digits-linear")
class DigitsLinear(Model):
    """Logistic regression on 64 pixels; 650 parameters, all 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(PIXELS, CLASSES)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    @classmethod
    def from_plan(cls, plan: Plan, options: Section) -> Self:
        """Build the network; nothing depends on the plan."""
        return cls()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [batch, 10] of images [batch, 64]."""
        logits: Tensor = self.layer(images)
        return logits


@registry.register("tasks", "digits-private")
class PrivateDigits(Task):
    """Learns to read handwritten digits with differential privacy for each image; tested on public images."""

    supports_privacy: ClassVar[bool] = True

    def __init__(self, plan: Plan, options: BaseModel, site: Site) -> None:
        super().__init__(plan, options, site)
        if plan.privacy is None:
            raise NeedsPrivacy("task 'digits-private' needs a [privacy] section with unit = 'image'")
        index, sites, seed = (int(part) for part in str(site.data).removeprefix("digits-private:").split("/"))
        (images, labels), self._test = split(seed)
        self._images, self._labels = images[index::sites], labels[index::sites]
        content = self._images.numpy().tobytes() + self._labels.numpy().tobytes()
        self._fingerprint = hashlib.sha256(content).hexdigest()
        self._protection = Protection(plan, site, self._fingerprint, "image", len(self._labels))

    def summary(self) -> SiteSummary:
        """Count the images, and say what training will spend."""
        return SiteSummary(
            name=self.site.name,
            role=self.site.role,
            num_examples=len(self._labels),
            num_eval_examples=len(self._test[1]),
            num_units=len(self._labels),
            unit="image",
            fingerprint=self._fingerprint,
            description=f"{len(self._labels)} handwritten digits; {self._protection.outlook()}",
        )

    def train(self, model: nn.Module, statistics: Statistics, instruction: TrainInstruction) -> TrainOutcome:
        """Train for one round; the metrics are what is spent so far."""
        units = Rows((self._images, self._labels), cross_entropy)
        return TrainOutcome(len(self._labels), self._protection.train(model, units, instruction))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, statistics: Statistics, *, with_baselines: bool) -> dict[str, float]:
        """Return cross entropy, and the percentage read right, on the test images, which are not private."""
        loss = float(cross_entropy(model.eval(), self._test))
        return {"loss": loss, "accuracy": accuracy(model, self._test)}
