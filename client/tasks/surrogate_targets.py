"""What a multi-modal surrogate predicts of a belt: temperature, radiation, and what habitability rests on, by physics.

Two of the targets are shares of area, computed cell by cell: of the surface that lies between the freezing and the
boiling point of water at its own pressure, and of the open sea without ice. No score is made up from them.
"""

import numpy as np
from numpy.typing import NDArray

from astrofed.client.data.world import Cube

FREEZING_K = 273.15
BOILING_K, BOILING_PA = 373.124, 101325.0  # at one standard atmosphere
EVAPORATION = 2.2564e6  # J kg-1 at the boiling point
WATER_GAS_CONSTANT = 461.523  # J kg-1 K-1
Float64 = NDArray[np.float64]


class Belts:
    """A world's rows of latitude in belts of nearly equally many rows, each row weighted by its cells' area."""

    def __init__(self, lat_deg: Float64, belts: int) -> None:
        self._lat = np.deg2rad(lat_deg)
        self._sums = np.zeros((len(lat_deg), belts))  # [lat, belt]: area of each row in its belt
        for belt, rows in enumerate(np.array_split(np.arange(len(lat_deg)), belts)):
            self._sums[rows, belt] = np.cos(self._lat[rows])

    @property
    def latitude(self) -> Float64:
        """The belts' mean latitudes by area [belt], radians."""
        return self.mean(self._lat[:, None])

    @property
    def area(self) -> Float64:
        """The belts' shares of the world's surface [belt]."""
        return np.asarray(self._sums.sum(axis=0) / self._sums.sum())

    def mean(self, field: NDArray[np.floating], weights: NDArray[np.floating] | None = None) -> Float64:
        """Return the means over belts and longitudes, [..., belt], of a field [..., lat, lon].

        `weights` [..., lat, lon] count beside the area; NaN where a belt has none.
        """
        if weights is None:
            return np.asarray(field.mean(axis=-1, dtype=np.float64) @ self._sums / self._sums.sum(axis=0))
        total = weights.sum(axis=-1, dtype=np.float64) @ self._sums
        with np.errstate(invalid="ignore"):
            return np.asarray((field * weights).sum(axis=-1, dtype=np.float64) @ self._sums / total)

    def sectors(self, field: NDArray[np.floating], sectors: int) -> Float64:
        """Return the means over belts and sectors of longitude, [..., belt, sector], of a field [..., lat, lon]."""
        parts = np.array_split(np.arange(field.shape[-1]), sectors)
        return np.stack([self.mean(field[..., part[0] : part[-1] + 1]) for part in parts], axis=-1)


def boiling_point(pressure_pa: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the boiling point of water in K, by Clausius and Clapeyron from that at one atmosphere."""
    inverse = 1 / BOILING_K - WATER_GAS_CONSTANT / EVAPORATION * np.log(pressure_pa / BOILING_PA)
    return np.asarray(1 / np.maximum(inverse, 1e-6))


def belt_targets(cube: Cube, belts: Belts) -> Float64:
    """Return [geological_time, climate_time, belt, target] in the units of `TARGETS`; NaN where a belt has no sea.

    The cube needs ts, rlut, ps, sic and lsm.
    """
    fields = cube.fields
    surface = fields["ts"]
    temperate = (surface >= FREEZING_K) & (surface < boiling_point(fields["ps"]))
    sea = 1.0 - fields["lsm"]
    return np.stack(
        [
            belts.mean(surface),
            belts.mean(-fields["rlut"]),  # fluxes are positive downward
            belts.mean(temperate.astype(np.float64)),
            1.0 - belts.mean(fields["sic"], weights=sea),
        ],
        axis=-1,
    )
