"""What fitting transits says: every folded light curve against a grid of computed ones, the mean weighed by likelihood.

This is what the network has to be measured against. It knows the noise's size, the priors that injections are
drawn from, and the physics; but the limb darkening is that of the priors' middle, the density the catalogue's, and the
noise is taken to be white. Depths are fitted between the grid's, each computed curve being scaled by a little.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from astrofed.client.tasks.transits_folding import Fold
from astrofed.client.tasks.transits_physics import MOMENTS, Float64, covered
from astrofed.shared.models.surrogate_layout import Target
from astrofed.shared.models.transit_layout import REACH, TARGETS

RATIOS = (0.01, 0.15)  # of planets, evenly in the logarithm
IMPACTS = (0.0, 0.95)  # evenly
LIMB_Q1, LIMB_Q2 = (0.2, 0.6), (0.2, 0.5)  # Kipping (2013, MNRAS 435, 2152), about what cool and warm dwarfs have
RATIO = np.geomspace(*RATIOS, 24)
IMPACT = np.linspace(*IMPACTS, 32)
POINTS = 48  # steps of computed light curves, between which lines are drawn
SMEAR = 0.15  # step of ln(exposure / central duration) at which computed light curves are kept


def standard(target: Target, value: float) -> float:
    """Return a target in its widths, from a ratio or hours."""
    return (float(np.log10(value)) - target.centre) / target.width


def fitted(folds: Sequence[Fold]) -> Float64:
    """Return [sample, target, 2] the likelihood's means and standard deviations over the grid, in widths."""
    return np.array([_fitted(fold) for fold in folds]).reshape(-1, len(TARGETS), 2)


def _fitted(fold: Fold) -> Float64:
    there = fold.count > 0
    place = np.minimum(np.abs(fold.phase[there]) / REACH, 1.0) * POINTS
    before = np.minimum(place.astype(np.int64), POINTS - 1)
    grid = _grid(round(float(np.log(fold.exposure_days / fold.central_days)) / SMEAR))
    expected = grid[..., before] * (before + 1 - place) + grid[..., before + 1] * (place - before)
    weight, missing = fold.count[there] / fold.scatter**2, fold.missing[there]
    step = (RATIO[1] / RATIO[0]) ** 2  # of the depth, so that neighbours' scales overlap
    scale = np.clip((expected * missing) @ weight / np.maximum(expected**2 @ weight, 1e-30), 1 / step, step)
    misfit = (scale[..., None] * expected - missing) ** 2 @ weight
    likely = np.exp(-0.5 * (misfit - misfit.min()))
    ratios = RATIO[:, None] * np.sqrt(scale)
    hours = 24 * fold.central_days * np.sqrt((1 + ratios) ** 2 - IMPACT**2)
    found = []
    for target, each in zip(TARGETS, (ratios, hours), strict=True):
        values = (np.log10(each) - target.centre) / target.width
        mean = (likely * values).sum() / likely.sum()
        found.append((mean, np.sqrt((likely * (values - mean) ** 2).sum() / likely.sum())))
    return np.array(found)


@lru_cache(maxsize=64)
def _grid(smear: int) -> Float64:
    """Return [ratio, impact, point] the missing light from mid-transit on; ln(exposure / central) in `SMEAR` steps."""
    root, q2 = float(np.mean(LIMB_Q1)) ** 0.5, float(np.mean(LIMB_Q2))
    limb = (2 * root * q2, root * (1 - 2 * q2))
    exposure = np.exp(smear * SMEAR)
    points = np.linspace(0, REACH, POINTS + 1)
    moments = points[:, None] + exposure * ((np.arange(MOMENTS) + 0.5) / MOMENTS - 0.5)
    distance = np.hypot(2 * moments, IMPACT[:, None, None])  # a disc is two radii wide
    return np.stack([covered(distance.ravel(), k, limb).reshape(distance.shape).mean(axis=-1) for k in RATIO.tolist()])
