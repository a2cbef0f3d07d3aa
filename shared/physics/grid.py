"""The sphere under the fields: metric terms, coordinates and a planet's constants, as tensors that differentiate.

Fields are [..., lev, lat, lon] or [..., lat, lon]; lev is sigma = p / ps, evenly spaced longitudes go once round. Any
axis may rise or fall. Horizontal derivatives are taken on surfaces of constant sigma, nearly as exactly as a spectral
model takes its own: by second-order differences the shipped worlds' winds would seem to make air, half a tolerance of
it in the root mean square.
"""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from astrofed.shared.errors import UserMistake
from astrofed.shared.physics.derivatives import along_meridian, around, half_turn, inverse_cosine
from astrofed.shared.planet import Planet

EVEN = 1e-3  # largest deviation of a longitude from even spacing, in units of the spacing


class UnfitGrid(UserMistake):
    """A grid on which the physics constraints can't be evaluated."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A global grid and its planet; build it with `Grid.of`. Lengths in m, angles in radians."""

    planet: Planet
    lev: Tensor  # [lev, 1, 1] sigma
    thickness: Tensor  # [lev, 1, 1] sigma thickness of each layer, sums to 1
    latitude: Tensor  # [lat, 1]
    coriolis: Tensor  # [lat, 1] f = 2 Ω sin φ, s-1
    area: Tensor  # [lat, 1] share of the sphere of one cell, sums to 1 over lat and lon
    _around: Tensor  # [lon, lon] ∂/∂λ, from the right
    _half_turn: Tensor  # [lon, lon] the field half a turn away, from the right
    _inverse_cosine: Tensor  # [lat, 1] 1 / cos φ
    _north: Tensor  # [lat, lat] a ∂/∂y, what the rows of the own side of the globe add
    _beyond: Tensor  # [lat, lat] what those of the other side add

    @classmethod
    def of(
        cls,
        lev: ArrayLike,
        lat_deg: ArrayLike,
        lon_deg: ArrayLike,
        planet: Planet,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Return the grid with the coordinates lev [lev] (sigma), lat_deg [lat] and lon_deg [lon] in degrees.

        Raises:
            UnfitGrid: fewer than 2 levels, 3 latitudes or 3 longitudes, or it doesn't cover the sphere evenly in lon.
        """
        sigma, latitude, longitude = (np.asarray(axis, np.float64) for axis in (lev, lat_deg, lon_deg))
        _check(sigma, latitude, longitude)
        latitude = np.deg2rad(latitude)
        edges = _edges(latitude, -np.pi / 2, np.pi / 2)
        north, beyond = along_meridian(latitude)
        tensors = {
            "lev": sigma[:, None, None],
            "thickness": np.abs(np.diff(_edges(sigma, 0.0, 1.0)))[:, None, None],
            "latitude": latitude[:, None],
            "coriolis": 2 * planet.angular_velocity * np.sin(latitude)[:, None],
            "area": np.abs(np.diff(np.sin(edges)))[:, None] / 2 / len(longitude),
            "_around": around(len(longitude), np.sign(longitude[1] - longitude[0])),
            "_half_turn": half_turn(len(longitude)),
            "_inverse_cosine": inverse_cosine(latitude, edges)[:, None],
            "_north": north,
            "_beyond": beyond,
        }
        return cls(planet, **{name: torch.tensor(values.copy(), dtype=dtype) for name, values in tensors.items()})

    def to(self, device: torch.device) -> Self:
        """Return the same grid on a device."""
        held = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "planet"}
        return type(self)(self.planet, **{name: tensor.to(device) for name, tensor in held.items()})

    def eastward(self, field: Tensor) -> Tensor:
        """(a cos φ)⁻¹ ∂/∂λ of [..., lat, lon], per m."""
        return (field @ self._around) * (self._inverse_cosine / self.planet.radius_m)

    def northward(self, field: Tensor) -> Tensor:
        """a⁻¹ ∂/∂φ of [..., lat, lon], per m."""
        return (self._north @ field + self._beyond @ (field @ self._half_turn)) / self.planet.radius_m

    def divergence(self, east: Tensor, north: Tensor) -> Tensor:
        """(a cos φ)⁻¹ [∂east/∂λ + ∂(north cos φ)/∂φ] of a vector with components [..., lat, lon], per m.

        Its global mean, which is truncation and nothing else, is taken off: no flow makes air.
        """
        found = self.eastward(east) + self.northward(north * self.latitude.cos()) * self._inverse_cosine
        return found - self.global_mean(found)[..., None, None]

    def vorticity(self, east: Tensor, north: Tensor) -> Tensor:
        """(a cos φ)⁻¹ [∂north/∂λ − ∂(east cos φ)/∂φ] of a vector with components [..., lat, lon], per m."""
        return self.divergence(north, -east)

    def global_mean(self, field: Tensor) -> Tensor:
        """Area-weighted mean of [..., lat, lon] -> [...]."""
        return (field * self.area).sum(dim=(-2, -1))

    @property
    def log_step(self) -> Tensor:
        """Δ ln p between neighbouring levels, which is Δ ln sigma [lev − 1, 1, 1]."""
        return step(self.lev.log())


def step(field: Tensor) -> Tensor:
    """Difference between neighbouring levels, [..., lev, lat, lon] -> [..., lev − 1, lat, lon]."""
    return field[..., 1:, :, :] - field[..., :-1, :, :]


def mean(field: Tensor) -> Tensor:
    """Mean of neighbouring levels, [..., lev, lat, lon] -> [..., lev − 1, lat, lon]."""
    return 0.5 * (field[..., 1:, :, :] + field[..., :-1, :, :])


def _check(lev: NDArray[np.float64], lat: NDArray[np.float64], lon: NDArray[np.float64]) -> None:
    if len(lev) < 2 or len(lat) < 3 or len(lon) < 3:
        raise UnfitGrid(
            f"physics needs at least 2 levels, 3 latitudes and 3 longitudes; the grid has {len(lev)}, {len(lat)} and "
            f"{len(lon)}: leave the plan's [physics] out"
        )
    spacing = 360.0 / len(lon)
    even = np.abs(np.abs(np.diff(lon)) - spacing).max() < EVEN * spacing
    gaps = 90.0 - np.abs(lat[[0, -1]])
    whole = (gaps <= np.abs(np.diff(lat))[[0, -1]]).all() and lat[0] * lat[-1] < 0
    if not (even and whole):
        raise UnfitGrid(
            f"physics needs the whole sphere with even longitudes; the grid's latitudes run from {lat[0]:g} to "
            f"{lat[-1]:g} degrees, its longitudes from {lon[0]:g} to {lon[-1]:g} in {len(lon)} steps: regrid the cube, "
            "or leave the plan's [physics] out"
        )


def _edges(centres: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Cell walls [n + 1] midway between centres [n], and at the two ends of the axis."""
    ends = (low, high) if centres[-1] > centres[0] else (high, low)
    return np.concatenate(([ends[0]], 0.5 * (centres[1:] + centres[:-1]), [ends[1]]))
