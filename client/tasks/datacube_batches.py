"""Batches of samples, shuffled and varied by a world's own symmetries."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from astrofed.client.fitting import Split
from astrofed.client.tasks.datacube_samples import Sample, World
from astrofed.client.tasks.datacube_scales import Scales
from astrofed.shared.models.datacube_layout import COORDINATES


@dataclass(frozen=True)
class Batch:
    """Samples with the same number of epochs; state and forcing dimensionless, the rest in learned units."""

    state: Tensor  # [batch, variable, climate_time = months_in, geological_time, lev, lat, lon]
    forcing: Tensor  # [batch, forcing, geological_time, lev, lat, lon]
    last: Tensor  # [batch, variable, 1, geological_time, lev, lat, lon]
    target: Tensor  # [batch, variable, climate_time = months_out, geological_time, lev, lat, lon]
    samples: tuple[Sample, ...]

    def at(self, rows: Tensor) -> "Batch":
        """Return the samples with these indices [sample]."""
        chosen = tuple(self.samples[row] for row in rows.tolist())
        return Batch(self.state[rows], self.forcing[rows], self.last[rows], self.target[rows], chosen)


SPLIT: Split[Batch] = Split(lambda batch: batch.state.shape, Batch.at)


def stack(world: World, samples: Sequence[Sample], scales: Scales) -> Batch:
    """Put samples with the same epochs into one batch."""
    return Batch(
        state=torch.stack([world.inputs(sample, scales) for sample in samples]),
        forcing=torch.stack([world.forcing(sample) for sample in samples]),
        last=torch.stack([world.last(sample) for sample in samples]),
        target=torch.stack([world.targets(sample) for sample in samples]),
        samples=tuple(samples),
    )


def batches(
    world: World,
    samples: Sequence[Sample],
    scales: Scales,
    generator: torch.Generator,
    *,
    size: int,
    mirror: bool,
    roll: bool,
) -> Iterator[Batch]:
    """Yield one epoch's batches in random order; a batch holds samples with the same number of epochs."""
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(len(sample.epochs), []).append(sample)
    plans = []
    for group in groups.values():
        order = torch.randperm(len(group), generator=generator).tolist()
        plans += [[group[i] for i in order[start : start + size]] for start in range(0, len(group), size)]
    for index in torch.randperm(len(plans), generator=generator).tolist():
        batch = stack(world, plans[index], scales)
        if mirror and bool(torch.rand((), generator=generator) < 0.5):
            batch = mirrored(batch, world.layout.mirror_signs())
        if roll:
            batch = rolled(batch, int(torch.randint(batch.state.shape[-1], (), generator=generator)))
        yield batch


def mirrored(batch: Batch, signs: Tensor) -> Batch:
    """Mirror worlds at the equator: the primitive equations hold if v changes its sign; the grid stays where it is."""
    sign = signs[:, None, None, None, None, None]
    forcing = batch.forcing.flip(-2)
    forcing[:, list(COORDINATES)] = batch.forcing[:, list(COORDINATES)]
    return Batch(
        state=batch.state.flip(-2) * sign,
        forcing=forcing,
        last=batch.last.flip(-2) * sign,
        target=batch.target.flip(-2) * sign,
        samples=batch.samples,
    )


def rolled(batch: Batch, cells: int) -> Batch:
    """Turn worlds by `cells` in longitude."""
    return Batch(
        state=batch.state.roll(cells, -1),
        forcing=batch.forcing.roll(cells, -1),
        last=batch.last.roll(cells, -1),
        target=batch.target.roll(cells, -1),
        samples=batch.samples,
    )
