"""One star's photometry: flux by time, what is known of the star, and of the planets that pass in front of it.

A table with a row a cadence: `time` [day], `flux` [1] and the star's name. Its metadata `known` hold, as JSON, the
star's mass and radius and its known planets' ephemerides (see `Known`): their transits are no noise to inject into.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from astrofed.client.data.table import Table, read_table
from astrofed.client.tasks.transits_physics import DAY_S, central_duration, phase
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Section

TIME, FLUX, STAR, KNOWN = "time", "flux", "star", "known"
LARGEST_RATIO = 0.2  # of any planet to its star that is looked for
OUTLIER = 5.0  # standard deviations from the running median, outside known transits
MEDIAN = 49  # cadences of the running median, one day of Kepler's
WIDE = 1.5  # central durations that are masked about a known mid-transit, to both sides together
LEAST = 500  # cadences

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class NoPhotometry(UserMistake):
    """A table that is no star's photometry, or doesn't say what a transit needs to be understood."""


class KnownPlanet(Section):
    """A planet whose transits are in the data; what was published of it is never trained on."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 .-]{0,39}$")]
    period_days: Positive
    epoch_days: Annotated[float, Field(allow_inf_nan=False)]
    radius_ratio: Annotated[float, Field(gt=0, lt=LARGEST_RATIO)]
    """The planet's radius over the star's, as published."""
    radius_ratio_error: Positive


class Known(Section):
    """What is known of a star."""

    mass_msun: Positive
    radius_rsun: Positive
    exposure_s: Positive
    planets: tuple[KnownPlanet, ...]

    @property
    def density(self) -> float:
        """The star's mean density, in the Sun's."""
        return self.mass_msun / self.radius_rsun**3

    @property
    def exposure(self) -> float:
        """How long the light of one cadence was gathered, days."""
        return self.exposure_s / DAY_S


@dataclass(frozen=True)
class Photometry:
    """One star's light curve, outliers left out, and which cadences are in a known planet's transit."""

    star: str
    time: NDArray[np.float64]  # [cadence] days, growing
    flux: NDArray[np.float64]  # [cadence] relative
    occupied: NDArray[np.bool_]  # [planet, cadence]
    known: Known
    unit: str
    fingerprint: str

    @property
    def quiet(self) -> NDArray[np.bool_]:
        """Say [cadence] where no known planet is in transit."""
        return np.asarray(~self.occupied.any(axis=0))


def read_photometry(path: Path) -> Photometry:
    """Read a star's photometry.

    Raises:
        NoPhotometry: several stars, times that don't grow, flux that is not positive, metadata absent or wrong.
        UserMistake: the table can't be read, or lacks a column or its unit.
    """
    table = read_table(path, min_rows=LEAST)
    known = _known(table, path)
    names = np.unique(table.text(STAR))
    if len(names) > 1:
        raise NoPhotometry(f"{path}: {len(names)} stars ({names[0]!r}, {names[1]!r} …); give each a table of its own")
    time, flux = table.numbers(TIME, "day"), table.numbers(FLUX, "1")
    if not np.isfinite(time).all() or not np.isfinite(flux).all() or (flux <= 0).any():
        raise NoPhotometry(f"{path}: {TIME!r} or {FLUX!r} is absent, infinite or not positive; leave out such rows")
    if (np.diff(time) <= 0).any():
        raise NoPhotometry(f"{path}: {TIME!r} must grow; sort the rows, and keep one of each time")
    occupied = occupied_by(time, known)
    kept = ~outliers(flux, np.asarray(occupied.any(axis=0)))
    return Photometry(
        str(names[0]), time[kept], flux[kept], occupied[:, kept], known, table.privacy_unit, table.fingerprint
    )


def occupied_by(time: NDArray[np.float64], known: Known) -> NDArray[np.bool_]:
    """Say [planet, cadence] which cadences lie in or near a known planet's transit."""
    inside = np.zeros((len(known.planets), len(time)), dtype=np.bool_)
    for row, planet in zip(inside, known.planets, strict=True):
        whole = WIDE * central_duration(planet.period_days, known.density) + known.exposure
        row[:] = np.abs(phase(time, planet.period_days, planet.epoch_days)) < whole / 2
    return inside


def outliers(flux: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Say [cadence] what lies far from the running median, to either side, and in no known transit [cadence]."""
    off = flux / running_median(flux) - 1
    scatter = 1.4826 * np.median(np.abs(off[~known]))
    return np.asarray((np.abs(off) > OUTLIER * scatter) & ~known)


def running_median(flux: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [cadence] the median over `MEDIAN` cadences about each; at the ends, over the first and the last."""
    padded = np.pad(flux, MEDIAN // 2, mode="edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, MEDIAN), axis=-1))


def _known(table: Table, path: Path) -> Known:
    stated = table.attributes.get(KNOWN)
    if stated is None:
        raise NoPhotometry(
            f"{path}: the schema metadata lack {KNOWN!r}; give the star's mass_msun and radius_rsun, exposure_s and "
            "the planets that are known, as JSON (an empty list: none)"
        )
    try:
        return Known.model_validate_json(stated)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise NoPhotometry(f"{path}: in the schema metadata {KNOWN!r}, {key or 'the JSON'}: {first['msg']}") from error
