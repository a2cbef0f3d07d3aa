"""From photometry to samples: transits that were put into a star's own flux, or that nature put there, folded alike.

Injection and recovery (Christiansen et al. 2015, ApJ 810, 95; 2020, AJ 160, 159): a transit is multiplied into the flux
as it was measured, so the noise is the star's and the instrument's. No cadence of a known planet's transit is left in.
Then injected and real transits are detrended and folded alike.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astrofed.client.tasks.transits_folding import Fold, folded
from astrofed.client.tasks.transits_photometry import Photometry
from astrofed.client.tasks.transits_physics import Float64, Transit, light_curve, scaled_axis
from astrofed.client.tasks.transits_templates import IMPACTS, LIMB_Q1, LIMB_Q2, RATIOS, standard
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.transit_layout import BINS, CHANNELS, SCALARS, TARGETS, FoldedTransits

PERIODS = (2.0, 45.0)  # days
AXIS_ERROR = 0.05  # relative, as of a density known to 15 %
TRIES = 100


class TooFewTransits(UserMistake):
    """A star's photometry is too short, or has too many gaps, to put transits into it."""


@dataclass(frozen=True)
class Samples:
    """Folded transits and what is true of them."""

    seen: FoldedTransits
    targets: Tensor  # [sample, target] float32 in widths
    given: Tensor  # [sample, target] float32: 1 where there is a target, else 0
    folds: tuple[Fold, ...]  # [sample] what `seen` was made of

    def __len__(self) -> int:
        return len(self.targets)


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

    Durations are not published in the catalogue.

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
    series = np.array([_series(fold) for fold in folds]).reshape(-1, len(CHANNELS), BINS)
    scalars = np.array([[*by_box(fold), *_scalars(fold)] for fold in folds]).reshape(-1, len(SCALARS))
    seen = FoldedTransits(*(torch.tensor(each, dtype=torch.float32) for each in (series, scalars)))
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
