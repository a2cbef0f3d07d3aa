"""Transits found at a known ephemeris, freed of slow changes and laid on top of each other.

A straight line through the flux about each transit, left and right of it, is divided out; all transits of a period are
folded into bins of phase. The box that fits best says how deep and how long they are, at first sight.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from astrofed.client.tasks.transits_photometry import Photometry
from astrofed.client.tasks.transits_physics import Float64, central_duration, phase
from astrofed.shared.models.transit_layout import BINS, REACH

BESIDE = 0.6  # central durations from mid-transit to where a planet of any size has left
WINDOW = 2.5  # central durations to each side that a line is drawn through
LEAST_SCATTER = 1e-7  # no photometry is better
ENOUGH = 3  # cadences to each side of a transit, without which it is left out
WIDTHS = tuple(np.geomspace(0.15, 1.1, 16).tolist())  # of boxes, central durations


@dataclass(frozen=True)
class Fold:
    """One planet's transits, folded, and the box that fits them best."""

    missing: Float64  # [bin] light that is missing, relative; NaN where there is no cadence
    phase: Float64  # [bin] mean of its cadences', central durations from mid-transit; NaN where there is none
    count: NDArray[np.int64]  # [bin] cadences
    scatter: float  # of a cadence beside the transits, relative
    transits: int
    central_days: float
    period_days: float
    density: float  # of the star, in the Sun's
    exposure_days: float
    depth: float  # of the box, relative; may be negative
    depth_error: float
    width_days: float  # of the box


def folded(time: Float64, flux: Float64, star: Photometry, period: float, epoch: float) -> Fold | None:
    """Return a planet's transits [cadence], detrended and folded; None where no transit has cadences on both sides."""
    central = central_duration(period, star.known.density)
    since = phase(time, period, epoch)
    near = np.abs(since) < min(WINDOW * central, period / 2)
    number = np.round((time[near] - epoch - since[near]) / period).astype(np.int64)
    since, level = since[near], flux[near]
    beside = np.abs(since) > BESIDE * central + star.known.exposure / 2
    number -= number.min(initial=0)
    line, whole = _lines(number, since, level, beside)
    if not whole.any():
        return None
    kept = whole[number]
    missing = 1 - level[kept] / line[kept]
    scatter = max(float(missing[beside[kept]].std()), LEAST_SCATTER)
    phases = since[kept] / central
    index = np.floor((phases + REACH) / (2 * REACH) * BINS).astype(np.int64)
    inside = (index >= 0) & (index < BINS)
    count = np.bincount(index[inside], minlength=BINS)
    with np.errstate(invalid="ignore"):
        binned, middle = (
            np.bincount(index[inside], values[inside], minlength=BINS) / count for values in (missing, phases)
        )
    best = max((_box(phases, missing, width) for width in WIDTHS), key=lambda box: box[0] * box[1] ** 0.5)
    if not best[1]:
        return None
    density, exposure = star.known.density, star.known.exposure
    error, width = scatter / best[1] ** 0.5, best[2] * central
    transits = int(whole.sum())
    return Fold(binned, middle, count, scatter, transits, central, period, density, exposure, best[0], error, width)


def _lines(
    number: NDArray[np.int64], since: Float64, level: Float64, beside: NDArray[np.bool_]
) -> tuple[Float64, NDArray[np.bool_]]:
    """Return [cadence] the line through the cadences beside its transit, and [transit] which have enough of them."""
    transits = int(number.max(initial=-1)) + 1

    def total(values: Float64) -> Float64:
        return np.bincount(number[beside], values[beside], minlength=transits).astype(np.float64)

    n, x, y = total(np.ones(len(since))), total(since), total(level)
    xx, cross, after = total(since**2), total(since * level), total((since > 0).astype(np.float64))
    whole = np.minimum(after, n - after) >= ENOUGH
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (n * cross - x * y) / (n * xx - x**2)
        start = (y - slope * x) / n
    return start[number] + slope[number] * since, whole


def _box(phases: Float64, missing: Float64, width: float) -> tuple[float, int, float]:
    """Return the mean missing light within a box about mid-transit, how many cadences it holds, and its width."""
    inside = np.abs(phases) < width / 2
    return float(missing[inside].mean()) if inside.any() else 0.0, int(inside.sum()), width
