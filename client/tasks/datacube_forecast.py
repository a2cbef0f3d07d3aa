"""From a datacube network's output to months: its changes are scaled, added to the last month, and mended by fixers."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from astrofed.client.tasks.datacube_batches import Batch, stack
from astrofed.client.tasks.datacube_physics import PhysicsFixers
from astrofed.client.tasks.datacube_samples import Sample, World
from astrofed.client.tasks.datacube_scales import Scales
from astrofed.shared.models.datacube_layout import DatacubeLayout

AT_ONCE = 2  # samples that are predicted together


class Forecaster:
    """Predicts with networks of one layout, always through the plan's fixers."""

    def __init__(self, layout: DatacubeLayout, fixers: Sequence[str]) -> None:
        self._layout = layout
        self._fixers = PhysicsFixers(fixers, layout.variables)

    @property
    def fixes(self) -> bool:
        """Whether the plan has fixers."""
        return bool(self._fixers.names)

    def changes(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return [batch, variable, climate_time, geological_time, lev, lat, lon] in scales of month-to-month change."""
        return self._layout.level_means(model(batch.state, batch.forcing))

    def months(self, world: World, batch: Batch, changes: Tensor, scales: Scales) -> Tensor:
        """Return the months, fixed, that changes come to: the same shape, in learned units."""
        return self._fixers(world, batch, batch.last + changes * scales.change, scales)

    @torch.no_grad()
    def predict(self, world: World, model: nn.Module, scales: Scales, samples: Sequence[Sample]) -> Tensor:
        """Return [sample, variable, climate_time, geological_time, lev, lat, lon] in learned units."""
        batch = stack(world, samples, scales)
        return self.months(world, batch, self.changes(model, batch), scales)

    def each(self, world: World, model: nn.Module, scales: Scales, samples: Sequence[Sample]) -> Iterator[Tensor]:
        """Yield each sample's prediction in learned units [variable, climate_time, geological_time, lev, lat, lon]."""
        model.eval()
        for start in range(0, len(samples), AT_ONCE):
            yield from self.predict(world, model, scales, samples[start : start + AT_ONCE])
