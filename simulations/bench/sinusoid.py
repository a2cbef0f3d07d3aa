"""Regression of sinusoids, the meta-learning benchmark of Finn et al. 2017 (arXiv:1703.03400, section 5.1), as a task.

A participant's data is named "sinusoids:7": the seed from which its test tasks are drawn. Amplitudes are uniform in
[0.1, 5], phases in [0, π], inputs in [-5, 5]. Importing this registers the task and its network.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import Annotated, ClassVar, Self

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from astrofed.client.meta.adaptation import Adapter, predictions
from astrofed.client.meta.algorithms import MetaLoss
from astrofed.client.meta.episodes import AdaptedScores, FewShot, Stacked
from astrofed.client.privacy.gradients import Units
from astrofed.client.privacy.protection import Protection
from astrofed.client.privacy.units import Population
from astrofed.client.site import Site, SiteSummary
from astrofed.client.task import Statistics, Task, TrainInstruction, TrainOutcome
from astrofed.client.training import Loss
from astrofed.shared import registry
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.base import Model
from astrofed.shared.plan import Plan, Section

POINTS = 100  # of each test task's query


class OnlyEpisodes(UserMistake):
    """Sinusoids are endless: there is nothing to train on but episodes, and nothing private."""


def draw(generator: torch.Generator, tasks: int, support: int, query: int) -> Stacked:
    """Return episodes of so many tasks, inputs and targets [task, shot, 1] each."""
    amplitude = 0.1 + 4.9 * torch.rand(tasks, 1, 1, generator=generator)
    phase = math.pi * torch.rand(tasks, 1, 1, generator=generator)
    inputs = 10 * torch.rand(tasks, support + query, 1, generator=generator) - 5
    targets = amplitude * torch.sin(inputs - phase)
    return Stacked(
        (inputs[:, :support], targets[:, :support]),
        (inputs[:, support:], targets[:, support:]),
    )


def squared_error(model: nn.Module, batch: Units) -> Tensor:
    """Return the mean squared error of a model on inputs and targets [shot, 1]."""
    return nn.functional.mse_loss(model(batch[0]), batch[1])


@registry.register("models", "sinusoid-net")
class SinusoidNet(Model):
    """Two hidden layers of 40 rectified units; 1,761 parameters."""

    last_layers: ClassVar[tuple[str, ...]] = ("layers.4.",)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))

    @classmethod
    def from_plan(cls, plan: Plan, options: Section) -> Self:
        """Build the network; nothing depends on the plan."""
        return cls()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs [shot, 1] to outputs [shot, 1]."""
        outputs: Tensor = self.layers(inputs)
        return outputs


class SinusoidEpisodes(FewShot[Units]):
    """Episodes of endless sinusoids."""

    kinds: ClassVar[tuple[str, ...]] = ("sinusoids",)

    def __init__(self, task: "Sinusoids") -> None:
        super().__init__(task)
        generator = torch.Generator().manual_seed(task.seed)
        self._test = draw(generator, task.options.test_tasks, self.meta.support_shots, POINTS)

    def loss(self, statistics: Statistics) -> Loss[Units]:
        """See `FewShot`."""
        return squared_error

    def batches(self, statistics: Statistics, generator: torch.Generator, size: int) -> Iterator[Stacked]:
        """See `FewShot`."""
        while True:
            yield draw(generator, size, self.meta.support_shots, self.meta.query_shots)

    def population(self, statistics: Statistics, loss: MetaLoss[Units], generator: torch.Generator) -> Population:
        """Refuse: there are no units.

        Raises:
            OnlyEpisodes: always.
        """
        raise OnlyEpisodes("sinusoids are no data of anybody's; remove the [privacy] section")

    def protection(self) -> Protection:
        """Refuse, as `population` does."""
        raise OnlyEpisodes("sinusoids are no data of anybody's; remove the [privacy] section")

    def num_scored(self) -> int:
        """See `FewShot`."""
        return len(self._test.query[0]) * POINTS

    def evaluate(
        self, model: nn.Module, statistics: Statistics, adapter: Adapter[Units], *, with_baselines: bool
    ) -> AdaptedScores:
        """See `FewShot`: "loss" is the mean squared error over the test tasks."""
        inputs, targets = self._test.query
        with torch.no_grad():
            before = float((model.eval()(inputs.flatten(0, 1)) - targets.flatten(0, 1)).square().mean())
        after = predictions(model, adapter.stacked(model, self._test.support), inputs)
        return AdaptedScores({"loss": before}, {"loss": float((after - targets).square().mean())}, None)


@registry.register("tasks", "sinusoids")
class Sinusoids(Task):
    """Learns to fit a sinusoid from a few of its points."""

    few_shot = SinusoidEpisodes

    class Options(Section):
        """How it is tested."""

        test_tasks: Annotated[int, Field(ge=1)] = 600

    def __init__(self, plan: Plan, options: BaseModel, site: Site) -> None:
        super().__init__(plan, options, site)
        self.options = self.Options.model_validate(options.model_dump())
        self.seed = int(site.data.name.removeprefix("sinusoids:"))

    def summary(self) -> SiteSummary:
        """Say what there is: a formula."""
        return SiteSummary(
            name=self.site.name,
            role=self.site.role,
            num_examples=1,
            num_eval_examples=self.options.test_tasks,
            num_units=1,
            unit="formula",
            fingerprint=hashlib.sha256(self.site.data.name.encode()).hexdigest(),
            description="sinusoids",
        )

    def train(self, model: nn.Module, statistics: Statistics, instruction: TrainInstruction) -> TrainOutcome:
        """Refuse: see `OnlyEpisodes`.

        Raises:
            OnlyEpisodes: always.
        """
        raise OnlyEpisodes("task 'sinusoids' is for mode = 'meta'")

    def evaluate(self, model: nn.Module, statistics: Statistics, *, with_baselines: bool) -> dict[str, float]:
        """Refuse, as `train` does."""
        raise OnlyEpisodes("task 'sinusoids' is for mode = 'meta'")
