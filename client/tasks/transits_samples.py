"""From photometry to samples: transits that were put into a star's own flux, or that nature put there, folded alike.

Injection and recovery (Christiansen et al. 2015, ApJ 810, 95; 2020, AJ 160, 159): a transit is multiplied into the flux
as it was measured, so the noise is the star's and the instrument's. No cadence of a known planet's transit is left in.
Then injected and real transits go through the same: a straight line through the flux about each transit, left and
right of it, is divided out, and all transits of a period are folded into bins of phase.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astrofed.client.tasks.transits_photometry import Photometry
from astrofed.client.tasks.transits_physics import Transit, central_duration, light_curve, phase, scaled_axis
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.surrogate_layout import Target
from astrofed.shared.models.transit_layout import BINS, REACH, TARGETS, FoldedTransits

Float64 = NDArray[np.float64]
BESIDE = 0.6  # central durations from mid-transit to where a planet of any size has left
WINDOW = 2.5  # central durations to each side that a line is drawn through
ENOUGH = 3  # cadences to each side of a transit, without which it is left out
PERIODS = (2.0, 45.0)  # days
RATIOS = (0.01, 0.15)
IMPACTS = (0.0, 0.95)
LIMB_Q1, LIMB_Q2 = (0.2, 0.6), (0.2, 0.5)  # Kipping (2013, MNRAS 435, 2152), about what cool and warm dwarfs have
AXIS_ERROR = 0.05  # relative, as of a density known to 15 %
TRIES = 100
WIDTHS = tuple(np.geomspace(0.15, 1.1, 16).tolist())  # of boxes, central durations


class TooFewTransits(UserMistake):
    """A star's photometry is too short, or has too many gaps, to put transits into it."""


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


@dataclass(frozen=True)
class Samples:
    """Folded transits and what is true of them."""

    seen: FoldedTransits
    targets: Tensor  # [sample, target] float32 in widths
    given: Tensor  # [sample, target] float32: 1 where there is a target, else 0
    folds: tuple[Fold, ...]  # [sample] what `seen` was made of

    def __len__(self) -> int:
        return len(self.targets)


def standard(target: Target, value: float) -> float:
    """Return a target in its widths, from a ratio or hours."""
    return (float(np.log10(value)) - target.centre) / target.width


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
    scatter = float(missing[beside[kept]].std())
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
        return np.bincount(number[beside], values[beside], minlength=transits)

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


def injected(star: Photometry, span: NDArray[np.bool_], count: int, seed: int) -> Samples:
    """Return transits of chance planets, put into what is quiet within a span [cadence] of a star's flux.

    Radius ratios and periods are drawn evenly in their logarithms, impact parameters evenly; limb darkening and an
    error of the star's density are drawn too, so that their uncertainty is in what is learned.

    Raises:
        TooFewTransits: chance finds no place for a transit.
    """
    chance = np.random.default_rng(seed)
    free = span & star.quiet
    time, flux, density = star.time[free], star.flux[free], star.known.density
    folds, truths = [], []
    for _ in range(count):
        for _ in range(TRIES):
            period = float(np.exp(chance.uniform(*np.log(PERIODS))))
            ratio = float(np.exp(chance.uniform(*np.log(RATIOS))))
            root, q2 = chance.uniform(*LIMB_Q1) ** 0.5, chance.uniform(*LIMB_Q2)
            axis = scaled_axis(period, density) * float(np.exp(chance.normal(0, AXIS_ERROR)))
            start = time[0] if len(time) else 0.0
            epoch, limb = float(start + chance.uniform(0, period)), (2 * root * q2, root * (1 - 2 * q2))
            planet = Transit(period, epoch, ratio, float(chance.uniform(*IMPACTS)), axis, limb)
            dimmed = flux * light_curve(time, planet, star.known.exposure)
            fold = folded(time, dimmed, star, period, epoch)
            if fold is not None:
                break
        else:
            raise TooFewTransits(
                f"{star.star}: {TRIES} chance transits found no place in {len(time)} quiet cadences; give a longer "
                "light curve, or change task.held_out"
            )
        folds.append(fold)
        truths.append((ratio, planet.duration * 24))
    return samples(folds, truths)


def real(star: Photometry) -> Samples:
    """Return the transits of the star's known planets, as they are in the data, one sample each.

    Durations are not known.

    Raises:
        TooFewTransits: none of a planet's transits has cadences to both sides.
    """
    folds, truths = [], []
    for row, planet in enumerate(star.known.planets):
        free = star.quiet | (star.occupied[row] & (star.occupied.sum(axis=0) == 1))
        fold = folded(star.time[free], star.flux[free], star, planet.period_days, planet.epoch_days)
        if fold is None:
            raise TooFewTransits(f"{star.star}: no transit of {planet.name} has cadences to both sides; don't name it")
        folds.append(fold)
        truths.append((planet.radius_ratio, float("nan")))
    return samples(folds, truths)


def samples(folds: list[Fold], truths: list[tuple[float, float]]) -> Samples:
    """Return folds as a network takes them, with the true radius ratios and durations [hours] (NaN: not known)."""
    values = [[standard(target, own) for target, own in zip(TARGETS, truth, strict=True)] for truth in truths]
    targets = torch.tensor(values, dtype=torch.float32).reshape(-1, len(TARGETS))
    boxes = torch.tensor([by_box(fold) for fold in folds], dtype=torch.float32).reshape(-1, len(TARGETS))
    series = torch.tensor(np.array([_series(fold) for fold in folds]), dtype=torch.float32)
    rest = torch.tensor([_scalars(fold) for fold in folds], dtype=torch.float32)
    seen = FoldedTransits(series, torch.cat([boxes, rest], dim=1))
    return Samples(seen, targets.nan_to_num(), targets.isfinite().float(), tuple(folds))


def by_box(fold: Fold) -> list[float]:
    """Return what a box says in the targets' widths: √depth, at least of the smallest planet; and its width."""
    ratio = min(max(fold.depth, RATIOS[0] ** 2) ** 0.5, RATIOS[1])
    return [standard(TARGETS[0], ratio), standard(TARGETS[1], fold.width_days * 24)]


def _series(fold: Fold) -> Float64:
    error = fold.scatter / np.sqrt(np.maximum(fold.count, 1))
    there = fold.count > 0
    missing = np.where(there, fold.missing, 0.0)
    shape = np.clip(missing / max(fold.depth, 3 * fold.depth_error), -2.0, 2.0)
    return np.stack([np.arcsinh(missing / error), shape, np.where(there, np.log10(error) + 4, 0.0)])


def _scalars(fold: Fold) -> list[float]:
    return [
        float(np.arcsinh(fold.depth / fold.depth_error)) / 3 - 1,
        2 * float(np.log10(fold.central_days * 24 / 3)),
        float(np.log10(fold.period_days / 10)),
        float(np.log10(fold.density)),
        float(np.log10(fold.exposure_days / fold.central_days)) + 1,
        float(np.log10(fold.transits)) - 0.5,
        float(np.log10(fold.scatter)) + 4,
    ]
