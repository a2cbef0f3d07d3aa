"""Fields in learned units, and the federated scales that make them dimensionless.

Learned units are SI but for variables that span decades, which are learned as a power (see `Variable.power`). Scales
are per variable and level: the area-weighted mean and standard deviation of the fields, and the root mean square of
month-to-month changes, each the median over the sites of what they measured on their training months. Where worlds
are private nothing is measured on them: scales are then round numbers that no data went into (`public_scales`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astrofed.client.data.world import Cube
from astrofed.shared.errors import AstrofedError, UserMistake
from astrofed.shared.models.datacube_layout import VARIABLES

MEAN, FIELD, CHANGE = "median:field/mean", "median:field/scale", "median:change/scale"
SMALLEST = 1e-12  # of quantities that are learned as a power, in SI
PUBLIC_CHANGE = 0.2  # of a variable's spread from month to month


class ConstantVariable(UserMistake):
    """A variable of the plan never changes in a site's cube, so nothing about it can be learned or scored."""


class ScalesMissingError(AstrofedError):
    """A round began without the pooled scales that the sites' statistics give."""


def learned_fields(cube: Cube, variables: Sequence[str]) -> NDArray[np.float32]:
    """Return [variable, climate_time, geological_time, lev, lat, lon] in learned units, surface fields repeated."""
    shape = cube.fields["ta"].shape
    out = np.empty((len(variables), shape[1], shape[0], *shape[2:]), np.float32)
    for index, name in enumerate(variables):
        values, variable = cube.fields[name], VARIABLES[name]
        if not variable.levels:
            values = values[:, :, None]
        if variable.power != 1.0:
            values = np.maximum(values, 0) ** np.float32(variable.power)
        out[index] = np.swapaxes(values, 0, 1)
    return out


def to_si(learned: Tensor, variables: Sequence[str]) -> Tensor:
    """Turn a tensor whose second axis is the variable from learned units to SI."""
    if all(VARIABLES[name].power == 1.0 for name in variables):
        return learned
    return torch.stack([in_si(values, name) for values, name in zip(learned.unbind(1), variables, strict=True)], dim=1)


def in_si(learned: Tensor, name: str) -> Tensor:
    """Turn one variable's values from learned units to SI."""
    power = VARIABLES[name].power
    return learned if power == 1.0 else learned.clamp(min=0) ** (1 / power)


def to_learned(si: Tensor, name: str) -> Tensor:
    """Turn one variable's values from SI to learned units; a power's slope is finite also at 0."""
    power = VARIABLES[name].power
    return si if power == 1.0 else si.clamp(min=SMALLEST) ** power


def area_weights(lat_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return cos φ, scaled to a mean of 1 [lat]."""
    weights = np.cos(np.deg2rad(lat_deg))
    return np.asarray(weights / weights.mean())


def site_scales(
    fields: NDArray[np.float32],
    frames: Sequence[tuple[int, int]],
    lat_deg: NDArray[np.float64],
    variables: Sequence[str],
    where: str,
) -> dict[str, NDArray[np.float64]]:
    """Return the three scales of one site, [variable, lev] each, by their keys.

    Args:
        fields: learned units, [variable, climate_time, geological_time, lev, lat, lon].
        frames: the (climate_time, geological_time) pairs that the site may use.
        lat_deg: [lat] in degrees.
        variables: their names.
        where: the site's name for messages.

    Raises:
        ConstantVariable: a variable has no variance or never changes.
    """
    area = area_weights(lat_deg)[:, None]
    allowed = set(frames)
    months = np.stack([fields[:, t, g] for t, g in frames], axis=1).astype(np.float64)
    mean = (months * area).mean(axis=(1, 3, 4))
    field = np.sqrt((((months - mean[:, None, :, None, None]) ** 2) * area).mean(axis=(1, 3, 4)))
    steps = [fields[:, t, g].astype(np.float64) - fields[:, t - 1, g] for t, g in frames if (t - 1, g) in allowed]
    change = np.sqrt((np.stack(steps, axis=1) ** 2 * area).mean(axis=(1, 3, 4)))
    for index, name in enumerate(variables):
        if VARIABLES[name].odd:
            mean[index] = 0.0  # so that mirroring a world is a change of sign
        if not (field[index].all() and change[index].all()):
            raise ConstantVariable(f"{where}: {name} never changes at some level; leave it out of task.variables")
    return {MEAN: mean, FIELD: field, CHANGE: change}


def public_scales(levels: int, variables: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Return the three scales, [variable, lev] each, by their keys, as no data but the variables' names say them."""
    offset, spread = (
        np.repeat([[getattr(VARIABLES[name], key)] for name in variables], levels, axis=1).astype(np.float64)
        for key in ("offset", "spread")
    )
    odd = np.array([VARIABLES[name].odd for name in variables])[:, None]
    return {MEAN: np.where(odd, 0.0, offset), FIELD: spread, CHANGE: PUBLIC_CHANGE * spread}


@dataclass(frozen=True)
class Scales:
    """The pooled scales in learned units, each [variable, 1, 1, lev, 1, 1]."""

    mean: Tensor
    field: Tensor
    change: Tensor

    def to(self, device: torch.device) -> Self:
        """Return the same scales on a device."""
        return type(self)(self.mean.to(device), self.field.to(device), self.change.to(device))

    @classmethod
    def pooled(cls, statistics: Mapping[str, NDArray[np.float64]]) -> Self:
        """Take the scales out of the server's pooled statistics.

        Raises:
            ScalesMissingError: a key is absent.
        """
        missing = [key for key in (MEAN, FIELD, CHANGE) if key not in statistics]
        if missing:
            raise ScalesMissingError(f"the pooled statistics lack {', '.join(missing)}; they hold {sorted(statistics)}")
        return cls(*(_spread(statistics[key]) for key in (MEAN, FIELD, CHANGE)))


def _spread(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))[:, None, None, :, None, None]
