"""Worlds as tasks with few samples: a site's one world, adapted to from some of its months and asked for others.

A sample predicts one month (or `months_out`) for all its epochs. Support and query have no target in common; inputs of
the one may be targets of the other, as they are when a world is met in earnest. All samples of an episode are turned
and mirrored alike.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from astrofed.client.meta.adaptation import Adapter
from astrofed.client.meta.algorithms import MetaLoss
from astrofed.client.meta.episodes import AdaptedScores, Episode, FewShot
from astrofed.client.privacy.protection import Protection
from astrofed.client.privacy.units import Parts, Population
from astrofed.client.task import Statistics
from astrofed.client.tasks.datacube_batches import Batch, mirrored, rolled, stack
from astrofed.client.tasks.datacube_samples import Sample, TooFewMonths
from astrofed.client.training import Loss
from astrofed.shared.seeds import derive_seed

if TYPE_CHECKING:
    from astrofed.client.tasks.datacube import DatacubeEmulation


class WorldEpisodes(FewShot[Batch]):
    """Episodes of one site's world."""

    kinds: ClassVar[tuple[str, ...]] = ("worlds",)

    def __init__(self, task: "DatacubeEmulation") -> None:
        super().__init__(task)
        self._task = task

    def loss(self, statistics: Statistics) -> Loss[Batch]:
        """See `FewShot`: the task's own, physics included."""
        return self._task.loss(self._task.scales(statistics))

    def batches(self, statistics: Statistics, generator: torch.Generator, size: int) -> Iterator[list[Episode[Batch]]]:
        """See `FewShot`."""
        samples = self._enough(self._task.samples_to_train_on(), self.meta.query_shots)
        while True:
            yield [self._episode(samples, statistics, generator) for _ in range(size)]

    def population(self, statistics: Statistics, loss: MetaLoss[Batch], generator: torch.Generator) -> Population:
        """See `FewShot`: one unit, the world, whose gradient is the mean over a step's episodes."""
        size = self._task.plan.training.batch_size
        steps = self.batches(statistics, generator, size)

        def share(model: nn.Module, episode: Episode[Batch]) -> Tensor:
            return loss(model, [episode]) / size

        return Parts([lambda: next(steps)], share)

    def protection(self) -> Protection:
        """See `FewShot`."""
        return self._task.protection()

    def num_scored(self) -> int:
        """See `FewShot`."""
        return len(self._split()[1])

    def adapted(self, model: nn.Module, statistics: Statistics, adapter: Adapter[Batch]) -> nn.Module:
        """See `FewShot`."""
        return adapter.adapted(model, stack(self._task.world, self._split()[0], self._task.scales(statistics)))

    def evaluate(
        self, model: nn.Module, statistics: Statistics, adapter: Adapter[Batch], *, with_baselines: bool
    ) -> AdaptedScores:
        """See `FewShot`: scored on held-out months, or on the months of a new world that it was not adapted to."""
        task, scored = self._task, self._split()[1]
        own = self.adapted(model, statistics, adapter)
        before = task.scores(model, statistics, scored, with_baselines=with_baselines)
        after = task.scores(own, statistics, scored, with_baselines=False)
        same = {name: value for name, value in before.items() if name.startswith("baseline/")}
        return AdaptedScores(before, after | same, own)

    def _split(self) -> tuple[list[Sample], list[Sample]]:
        """What the site is adapted to, and what is scored."""
        task, shots = self._task, self.meta.support_shots
        trains = task.site.role == "train"
        source = self._enough(task.samples_to_train_on() if trains else task.evaluation_samples(), 0 if trains else 1)
        generator = torch.Generator().manual_seed(derive_seed(task.plan.seed, "support", task.site.name))
        order = torch.randperm(len(source), generator=generator).tolist()
        support = _joint([source[index] for index in sorted(order[:shots])])
        return support, task.evaluation_samples() if trains else [source[index] for index in sorted(order[shots:])]

    def _enough(self, samples: list[Sample], query: int) -> list[Sample]:
        if len(samples) < self.meta.support_shots + query:
            raise TooFewMonths(
                f"{self._task.site.name}: {len(samples)} samples are fewer than meta.support_shots = "
                f"{self.meta.support_shots} and {query} more to ask for; lower meta.support_shots or meta.query_shots"
            )
        return samples

    def _episode(self, samples: Sequence[Sample], statistics: Statistics, generator: torch.Generator) -> Episode[Batch]:
        task, shots = self._task, self.meta.support_shots
        order = torch.randperm(len(samples), generator=generator)[: shots + self.meta.query_shots].tolist()
        chosen = _joint([samples[index] for index in order])
        world, scales = task.world, task.scales(statistics)
        both = [stack(world, part, scales) for part in (chosen[:shots], chosen[shots:])]
        if task.options.mirror and world.mirrors and bool(torch.rand((), generator=generator) < 0.5):
            both = [mirrored(batch, world.layout.mirror_signs()) for batch in both]
        if task.options.roll:
            cells = int(torch.randint(both[0].state.shape[-1], (), generator=generator))
            both = [rolled(batch, cells) for batch in both]
        return Episode(*both)


def _joint(samples: list[Sample]) -> list[Sample]:
    """Return the samples over the epochs that all of them have, so that they fit into one batch."""
    epochs = min(len(sample.epochs) for sample in samples)
    span = tuple(range(epochs))
    return [sample if len(sample.epochs) == epochs else Sample(sample.target, span, span) for sample in samples]
