"""Which months of a world a site may learn from, which it is tested on, and how they become tensors.

A sample predicts the months from `target` on out of the months before it, jointly for some geological epochs. The last
months of the last epoch are held out: no training sample sees them, neither as input nor as target. Samples are joint
over the epochs wherever all of them are free, and leave the last epoch out elsewhere.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astrofed.client.data.world import Cube
from astrofed.client.site import Site
from astrofed.client.tasks.datacube_scales import Scales, area_weights, learned_fields
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.datacube_layout import GEOPOTENTIAL_UNIT, DatacubeLayout
from astrofed.shared.physics.grid import Grid
from astrofed.shared.planet import EARTH_RADIUS

EARTH_ROTATION = 7.2921e-5  # rad s-1
EARTH_GRAVITY = 9.80665  # m s-2
CPU = torch.device("cpu")


class TooFewMonths(UserMistake):
    """A cube has too few months or epochs for the plan's input, output and held-out months."""


class VariableNotInCube(UserMistake):
    """A plan asks for a variable that a site's cube lacks."""


@dataclass(frozen=True)
class Sample:
    """One prediction: its first target month, the epochs it holds, and those of them that are scored."""

    target: int
    epochs: tuple[int, ...]
    scored: tuple[int, ...]  # positions in `epochs`


def training_samples(months: int, epochs: int, layout: DatacubeLayout, held_out: int) -> list[Sample]:
    """Return the samples of a world that a site may train on; all their epochs are scored."""
    free = months - held_out
    samples = []
    for target in range(layout.months_in, months - layout.months_out + 1):
        span = range(epochs if target + layout.months_out <= free else epochs - 1)
        if span:
            samples.append(Sample(target, tuple(span), tuple(span)))
    return samples


def held_out_samples(months: int, epochs: int, layout: DatacubeLayout, held_out: int) -> list[Sample]:
    """Return the samples whose targets are held-out months of the last epoch; the other epochs are context."""
    first = max(months - held_out, layout.months_in)
    last = months - layout.months_out
    return [Sample(target, tuple(range(epochs)), (epochs - 1,)) for target in range(first, last + 1)]


def all_samples(months: int, epochs: int, layout: DatacubeLayout) -> list[Sample]:
    """Return every sample of a world that nothing was learned from, scored in all epochs."""
    span = tuple(range(epochs))
    return [Sample(target, span, span) for target in range(layout.months_in, months - layout.months_out + 1)]


def check_length(world: "World", layout: DatacubeLayout, held_out: int, site: Site) -> None:
    """Check that a site's world has months enough for its role, of which a training site holds out the last.

    Raises:
        TooFewMonths: it hasn't; the message says what there is and what is needed.
    """
    needed = layout.months_in + layout.months_out
    shape = f"{site.name}: the cube has {world.epochs} epochs of {world.months} months"
    if site.role == "evaluate":
        if world.months < needed:
            raise TooFewMonths(f"{shape}; {needed} months are needed for one sample (months_in + months_out)")
        return
    training = training_samples(world.months, world.epochs, layout, held_out)
    kept = held_out_samples(world.months, world.epochs, layout, held_out)
    if not training or not kept:
        raise TooFewMonths(
            f"{shape}, which leaves {len(training)} training and {len(kept)} held-out samples with months_in = "
            f"{layout.months_in}, months_out = {layout.months_out}, held_out_months = {held_out}; "
            "lower one of them or give a longer cube"
        )


class World:
    """One site's world as tensors: fields in learned units, and the forcing that goes with each sample.

    Raises:
        VariableNotInCube: a variable of the layout, the land mask or the surface geopotential is missing.
    """

    def __init__(self, cube: Cube, layout: DatacubeLayout, where: str) -> None:
        for name in (*layout.variables, "lsm", "phis", *(("rst",) if layout.season == "absorbed sunlight" else ())):
            if name not in cube.fields:
                raise VariableNotInCube(
                    f"{where}: the cube has no variable {name!r} (it has {', '.join(cube.fields)}); "
                    "add it to the cube, or leave it out of task.variables (season = 'none' does without rst)"
                )
        self.cube = cube
        self.layout = layout
        self.fields = torch.from_numpy(learned_fields(cube, layout.variables))
        self.area = torch.from_numpy(area_weights(cube.lat_deg).astype(np.float32))[:, None]
        self.epochs, self.months = cube.fields["ta"].shape[:2]
        self.mirrors = bool(np.allclose(cube.lat_deg, -cube.lat_deg[::-1], atol=1e-3))
        self._fixed = torch.from_numpy(_fixed_forcing(cube))
        self._grids: dict[tuple[torch.dtype, torch.device], Grid] = {}
        self._sunlight = None
        if layout.season == "absorbed sunlight":
            self._sunlight = _sunlight_asymmetry(cube.fields["rst"], cube)

    def grid(self, dtype: torch.dtype, device: torch.device = CPU) -> Grid:
        """Return the world's grid for physics on a device, made at the first use.

        Raises:
            UnfitGrid: it doesn't cover the sphere.
        """
        if (dtype, device) not in self._grids:
            cube = self.cube
            made = Grid.of(cube.lev, cube.lat_deg, cube.lon_deg, cube.planet, dtype)
            self._grids[dtype, device] = made.to(device)
        return self._grids[dtype, device]

    def inputs(self, sample: Sample, scales: Scales) -> Tensor:
        """Return [variable, climate_time = months_in, geological_time, lev, lat, lon] as the network wants it."""
        months = self.past(sample)
        last = months[:, -1:]
        before = (months[:, :-1] - last) / scales.change
        return torch.cat((before, (last - scales.mean) / scales.field), dim=1)

    def past(self, sample: Sample) -> Tensor:
        """Return the input months in learned units [variable, months_in, geological_time, lev, lat, lon]."""
        return self._months(slice(sample.target - self.layout.months_in, sample.target), sample)

    def last(self, sample: Sample) -> Tensor:
        """Return the last input month in learned units [variable, 1, geological_time, lev, lat, lon]."""
        return self._months(slice(sample.target - 1, sample.target), sample)

    def targets(self, sample: Sample) -> Tensor:
        """Return the target months in learned units [variable, climate_time, geological_time, lev, lat, lon]."""
        return self._months(slice(sample.target, sample.target + self.layout.months_out), sample)

    def forcing(self, sample: Sample) -> Tensor:
        """Return [forcing, geological_time, lev, lat, lon], see `datacube_layout.FIXED_FORCING`."""
        epochs = list(sample.epochs)
        fixed = self._fixed[:, epochs]
        sine = fixed[2]
        season = torch.from_numpy(self._season(sample)[:, epochs])[..., None, None, None] * sine
        if not self.layout.ages:
            return torch.cat((fixed, season))
        years = torch.from_numpy(self.cube.geological_time[epochs].astype(np.float32))[:, None, None, None]
        return torch.cat((fixed, season, years.expand_as(sine)[None]))

    def follow_sunlight(self) -> None:
        """Take the season from the sunlight in `fields`, where other months have been put.

        Raises:
            VariableNotInCube: the season is wanted and "rst" is none of the layout's variables.
        """
        if self._sunlight is None:
            return
        if "rst" not in self.layout.variables:
            raise VariableNotInCube("a season to be carried on needs rst among task.variables, or season = 'none'")
        rst = self.fields[self.layout.variables.index("rst"), :, :, 0].transpose(0, 1)
        self._sunlight = _sunlight_asymmetry(rst.numpy(), self.cube)

    def _months(self, span: slice, sample: Sample) -> Tensor:
        months = self.fields[:, span]
        return months if len(sample.epochs) == self.epochs else months[:, :, list(sample.epochs)]

    def _season(self, sample: Sample) -> NDArray[np.float32]:
        """Return [2 · months_out, geological_time]: the season's strength in each target month, and its change.

        The difference between the hemispheres' absorbed sunlight follows the declination, a sinusoid over the year. Two
        numbers fitted to the input months carry it forward: nothing after the last input month is looked at, and no
        calendar is needed.
        """
        out = self.layout.months_out
        if self._sunlight is None:
            return np.zeros((2 * out, self.epochs), np.float32)
        step = 2 * np.pi / self.months
        past = step * np.arange(1 - self.layout.months_in, 1)
        seen = self._sunlight[:, sample.target - self.layout.months_in : sample.target].T
        wave = np.linalg.pinv(np.stack((np.sin(past), np.cos(past)), axis=1)) @ seen
        ahead = step * np.arange(1, out + 1)
        coming = np.stack((np.sin(ahead), np.cos(ahead)), axis=1) @ wave
        return np.concatenate((coming, 3 * (coming - wave[1]))).astype(np.float32)


def _sunlight_asymmetry(rst: NDArray[np.float32], cube: Cube) -> NDArray[np.float64]:
    """Return [geological_time, climate_time]: absorbed sunlight of the north less the south, scaled to about ±1.

    `rst` (W/m²) is [geological_time, climate_time, lat, lon].
    """
    weights = np.cos(np.deg2rad(cube.lat_deg)) * np.sign(cube.lat_deg)
    zonal = rst.mean(axis=-1, dtype=np.float64)
    north_less_south = zonal @ weights / np.abs(weights).sum()
    return np.asarray(north_less_south / (cube.flux_w_m2[:, None] / 16))


def _fixed_forcing(cube: Cube) -> NDArray[np.float32]:
    planet = cube.planet
    latitude = np.deg2rad(cube.lat_deg)[:, None]
    sigma = cube.lev[:, None, None]
    rotation = planet.angular_velocity / EARTH_ROTATION
    per_epoch = (slice(None), None, None, None)
    channels = (
        cube.fields["lsm"][:, :1],
        cube.fields["phis"][:, :1] / GEOPOTENTIAL_UNIT,
        np.sin(latitude),
        np.cos(latitude),
        sigma,
        np.exp(-(((sigma - 0.2) / 0.15) ** 2)),
        np.exp(-(((sigma - 1.0) / 0.12) ** 2)),
        rotation * np.sin(latitude),
        rotation * np.cos(latitude) * EARTH_RADIUS / planet.radius_m,
        np.asarray(np.log(planet.gravity_m_s2 / EARTH_GRAVITY)),
        5 * (cube.flux_w_m2 / 1340 - 1)[per_epoch],
        0.5 * np.log10(np.maximum(cube.pco2_pa, 1e-3) / 100)[per_epoch],
    )
    shape = (len(cube.geological_time), len(cube.lev), len(cube.lat_deg), len(cube.lon_deg))
    return np.stack([np.broadcast_to(channel, shape).astype(np.float32) for channel in channels])
