"""What fitting transits says: every folded light curve against a grid of computed ones, the mean weighed by likelihood.

This is what the network has to be measured against: it knows the noise's size, the priors that injections are drawn
from, and the physics; only the limb darkening is that of the priors' middle, the density the catalogue's, and the noise
is taken to be white. Depths are fitted between the grid's, each computed curve being scaled by a little.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from astrofed.client.tasks.transits_physics import MOMENTS, Float64, covered
from astrofed.client.tasks.transits_samples import IMPACTS, LIMB_Q1, LIMB_Q2, RATIOS, Fold, standard
from astrofed.shared.models.transit_layout import REACH, TARGETS

RATIO = np.geomspace(*RATIOS, 24)
IMPACT = np.linspace(*IMPACTS, 32)
POINTS = 48  # steps of computed light curves, between which lines are drawn
SMEAR = 0.15  # step of ln(exposure / central duration) at which computed light curves are kept


def fitted(folds: tuple[Fold, ...]) -> Tensor:
    """Return [sample, target] in widths (float64): the likelihood's means over the grid."""
    return torch.from_numpy(np.array([_fitted(fold) for fold in folds]).reshape(-1, len(TARGETS)))


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
    chords = np.sqrt((1 + ratios) ** 2 - IMPACT**2)
    ratio, chord = (10 ** float((likely * np.log10(each)).sum() / likely.sum()) for each in (ratios, chords))
    return np.array([standard(TARGETS[0], ratio), standard(TARGETS[1], 24 * fold.central_days * chord)])


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
