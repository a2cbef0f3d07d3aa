"""Belts and months of one world as samples: what each modality saw, what came after, and which are held out.

A sample looks at one belt in one month of one epoch; its targets lie `lead` months later in the same epoch. The last
target months of the last epoch are held out: no training sample has a target among them. Half of the held-out samples,
drawn at random, calibrate intervals; the others test them.

All inputs and targets stand on fixed public scales, not on the site's own statistics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astrofed.client.data.emission import Emission, read_emission
from astrofed.client.data.world import Cube
from astrofed.client.tasks.surrogate_targets import Belts, belt_targets
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.datacube_layout import VARIABLES
from astrofed.shared.models.surrogate_layout import MODALITIES, SERIES, TARGETS, Observations, SurrogateLayout
from astrofed.shared.planet import EARTH_RADIUS

EARTH_GRAVITY = 9.80665  # m s-2
EARTH_DAY_S = 86164.1  # one turn
SOLAR_TEFF_K = 5772.0
THERMAL_UM = (4.0, 100.0)  # where the emission of temperate worlds says something
LEAST_K = 100.0  # brightness temperatures below are as good as no signal
_NEEDED = ("ts", "rlut", "ps", "sic", "lsm")
Float64 = NDArray[np.float64]


class NoModality(UserMistake):
    """A site's data hold none of the modalities that it may use, or lack one that the plan names."""


class TooFewBelts(UserMistake):
    """A cube's grid, months or epochs are too few for the plan's belts, sectors, lead or series."""


@dataclass(frozen=True)
class Samples:
    """Samples of one world; rows agree over all fields."""

    seen: Observations
    targets: Tensor  # [sample, target] float32 in widths; 0 where there is none
    given: Tensor  # [sample, target] float32: 1 where there is a target, else 0
    now: Tensor  # [sample, target] the same quantities in the last observed month
    usual: Tensor  # [sample, target] their mean in the target month over the world's other epochs; NaN: there are none
    usual_now: Tensor  # [sample, target] the same for the last observed month
    epoch: NDArray[np.int64]  # [sample]
    target_month: NDArray[np.int64]  # [sample]

    def __len__(self) -> int:
        return len(self.targets)

    def where(self, rows: NDArray[np.bool_]) -> "Samples":
        """Return the samples of those rows."""
        kept = torch.from_numpy(np.flatnonzero(rows))
        now, usual, usual_now = self.now[kept], self.usual[kept], self.usual_now[kept]
        epoch, month = self.epoch[rows], self.target_month[rows]
        return Samples(self.seen.at(kept), self.targets[kept], self.given[kept], now, usual, usual_now, epoch, month)


def together(worlds: Sequence[Samples]) -> Samples:
    """Return the samples of several worlds as one; what a world lacks is filled up with zeros."""
    if len(worlds) == 1:
        return worlds[0]
    parts = [world.seen.tensors() for world in worlds]
    seen = Observations(*(_stacked(tensors) for tensors in zip(*parts, strict=True)))
    return Samples(
        seen,
        torch.cat([world.targets for world in worlds]),
        torch.cat([world.given for world in worlds]),
        torch.cat([world.now for world in worlds]),
        torch.cat([world.usual for world in worlds]),
        torch.cat([world.usual_now for world in worlds]),
        np.concatenate([world.epoch for world in worlds]),
        np.concatenate([world.target_month for world in worlds]),
    )


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Put [sample, …] tensors one after another; smaller ones, which hold nothing, grow with zeros."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    grown = [t if list(t.shape[1:]) == shape else t.new_zeros(len(t), *shape) for t in tensors]
    if any(bool(t.any()) and g is not t for t, g in zip(tensors, grown, strict=True)):
        raise TooFewBelts("worlds of one site differ in levels or wavelengths; make each a participant of its own")
    return torch.cat(grown)


def modalities_of(cube: Cube, path: Path, layout: SurrogateLayout, site: str) -> tuple[str, ...]:
    """Return which modalities a site uses: those that the plan names for it, or all that its data hold.

    Raises:
        NoModality: the data lack one that the plan names, or hold none at all.
        DataMistake: the spectrum is damaged.
    """
    held = _held(cube, read_emission(path, cube), layout)
    named = layout.modalities.get(site)
    if named is None:
        if not held:
            raise NoModality(f"{site}: {path} holds no modality; it has {', '.join(cube.fields)}")
        return held
    absent = [name for name in named if name not in held]
    if absent:
        raise NoModality(
            f"{site}: task.modalities names {absent[0]!r}, which {path} doesn't hold (it holds {', '.join(held)}); "
            "take it out of the plan, or add the data"
        )
    return tuple(name for name in MODALITIES if name in named)


def read_samples(cube: Cube, path: Path, layout: SurrogateLayout, site: str) -> Samples:
    """Return all samples of a world.

    Raises:
        NoModality: see `modalities_of`; or the surface fields that the targets are made of are absent.
        TooFewBelts: the grid, the months or the epochs are too few.
        DataMistake: the spectrum is damaged.
    """
    absent = [name for name in _NEEDED if name not in cube.fields]
    if absent:
        raise NoModality(f"{site}: {path} lacks {', '.join(absent)}, which the targets are made of; add them")
    epochs, months, rows, longitudes = cube.fields["ps"].shape
    if rows < layout.belts or longitudes < layout.sectors or months < layout.months_in + layout.lead:
        raise TooFewBelts(
            f"{site}: the cube has {months} months, {rows} latitudes and {longitudes} longitudes; needed are "
            f"{layout.months_in + layout.lead} (months_in + lead), {layout.belts} (belts) and {layout.sectors} "
            "(sectors); lower these or give a finer cube"
        )
    used = modalities_of(cube, path, layout, site)
    belts = Belts(cube.lat_deg, layout.belts)
    truth = _standard(belt_targets(cube, belts))  # [epoch, month, belt, target]
    last = np.arange(layout.months_in - 1, months - layout.lead)
    index = np.stack(np.meshgrid(np.arange(epochs), last, np.arange(layout.belts), indexing="ij"), -1).reshape(-1, 3)
    epoch, month, belt = index.T
    ahead = month + layout.lead
    values, now = truth[epoch, ahead, belt], truth[epoch, month, belt]
    others = _of_other_epochs(truth)
    count = len(index)
    return Samples(
        seen=Observations(
            place=_place(belts, belt, layout.lead / months),
            cube=_cube(cube, belts, layout, index)
            if "cube" in used
            else torch.zeros(count, len(layout.variables) + 1, 1, 1),
            scalars=_scalars(cube, belts, index),
            spectrum=_spectrum(read_emission(path, cube), belts, index)
            if "spectrum" in used
            else torch.zeros(count, 2, 1),
            series=_series(cube, layout, index)
            if "series" in used
            else torch.zeros(count, len(SERIES), layout.months_in),
            present=torch.tensor([name in used for name in MODALITIES]).expand(count, -1).clone(),
        ),
        targets=_tensor(np.nan_to_num(values)),
        given=_tensor(np.isfinite(values)),
        now=_tensor(now),
        usual=_tensor(others[epoch, ahead, belt]),
        usual_now=_tensor(others[epoch, month, belt]),
        epoch=epoch,
        target_month=ahead,
    )


def held_out(samples: Samples, months: int, held_out_months: int) -> NDArray[np.bool_]:
    """Say [sample] which targets lie in the last months of the last epoch."""
    latest: NDArray[np.bool_] = (samples.epoch == samples.epoch.max()) & (
        samples.target_month >= months - held_out_months
    )
    return latest


def _held(cube: Cube, emission: Emission | None, layout: SurrogateLayout) -> tuple[str, ...]:
    fields = cube.fields
    there = {
        "cube": all(name in fields for name in layout.variables),
        "scalars": "lsm" in fields and "phis" in fields,
        "spectrum": emission is not None,
        "series": all(name in fields for name in SERIES),
    }
    return tuple(name for name in MODALITIES if there[name])


def _standard(values: Float64) -> Float64:
    centre, width = np.array([t.centre for t in TARGETS]), np.array([t.width for t in TARGETS])
    return np.asarray((values - centre) / width)


def _of_other_epochs(truth: Float64) -> Float64:
    """[epoch, month, belt, target]: the mean over all epochs but the own; NaN where there is one epoch."""
    epochs = len(truth)
    if epochs == 1:
        return np.full_like(truth, np.nan)
    return np.asarray((truth.sum(axis=0, keepdims=True) - truth) / (epochs - 1))


def _place(belts: Belts, belt: NDArray[np.int64], years: float) -> Tensor:
    latitude = belts.latitude[belt]
    return _tensor(np.stack([np.sin(latitude), np.cos(latitude), np.full(len(belt), years)], axis=1))


def _cube(cube: Cube, belts: Belts, layout: SurrogateLayout, index: NDArray[np.int64]) -> Tensor:
    """[sample, variable + 1, lev, sector]."""
    channels = []
    for name in layout.variables:
        variable, values = VARIABLES[name], cube.fields[name].astype(np.float64)
        if variable.power != 1.0:
            values = np.maximum(values, 0) ** variable.power
        channels.append((belts.sectors(values, layout.sectors) - variable.offset) / variable.spread)
    sigma = np.broadcast_to(cube.lev[:, None, None] * 2 - 1, channels[0].shape[2:])  # [lev, belt, sector]
    stacked = np.stack(
        [*channels, np.broadcast_to(sigma, channels[0].shape)], axis=2
    )  # [epoch, month, channel, lev, …]
    return _tensor(stacked[index[:, 0], index[:, 1], :, :, index[:, 2]])


def _scalars(cube: Cube, belts: Belts, index: NDArray[np.int64]) -> Tensor:
    """[sample, scalar], in the order of `SCALARS`."""
    planet, (epoch, month, belt) = cube.planet, index.T
    angle = 2 * np.pi * month / cube.fields["ps"].shape[1]
    zeros = np.zeros(len(index))
    land = belts.mean(cube.fields["lsm"])[epoch, month, belt]
    height = belts.mean(cube.fields["phis"])[epoch, month, belt] if "phis" in cube.fields else zeros
    columns = (
        5 * np.log(cube.flux_w_m2[epoch] / 1340),
        0.5 * np.log10(np.maximum(cube.pco2_pa[epoch], 1e-3) / 100),
        zeros + 5 * np.log(planet.star_temperature_k / SOLAR_TEFF_K),
        zeros + np.log(planet.rotation_period_s / EARTH_DAY_S),
        zeros + 2 * np.log(planet.radius_m / EARTH_RADIUS),
        zeros + 2 * np.log(planet.gravity_m_s2 / EARTH_GRAVITY),
        zeros + 0.5 * np.log(max(planet.mixed_layer_depth_m, 0.1) / 10),
        np.sin(angle),
        np.cos(angle),
        2 * land - 1,
        height / 1e4,
    )
    return _tensor(np.stack(columns, axis=1))


def _spectrum(emission: Emission | None, belts: Belts, index: NDArray[np.int64]) -> Tensor:
    """[sample, 2, wavelength]: brightness temperature and wavelength, standardised."""
    assert emission is not None
    kept = (emission.wavelength_um >= THERMAL_UM[0]) & (emission.wavelength_um <= THERMAL_UM[1])
    kelvin = np.maximum(emission.brightness_temperature(), LEAST_K)[..., kept]
    by_belt = belts.mean(np.moveaxis(kelvin, -1, 0)[..., None])  # [wavelength, epoch, month, belt]
    brightness = (by_belt[:, index[:, 0], index[:, 1], index[:, 2]].T - 250) / 30
    logarithm = np.log10(emission.wavelength_um[kept] / 20) * 2
    return _tensor(np.stack([brightness, np.broadcast_to(logarithm, brightness.shape)], axis=1))


def _series(cube: Cube, layout: SurrogateLayout, index: NDArray[np.int64]) -> Tensor:
    """[sample, series, month]: global means of the last months, oldest first."""
    whole = Belts(cube.lat_deg, 1)
    columns = [
        (whole.mean(cube.fields[name])[..., 0] - VARIABLES[name].offset) / (0.3 * VARIABLES[name].spread)
        for name in SERIES
    ]
    months = index[:, 1, None] + np.arange(1 - layout.months_in, 1)
    return _tensor(np.stack([column[index[:, 0, None], months] for column in columns], axis=1))


def _tensor(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
