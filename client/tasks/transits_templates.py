"""What fitting transits says: every folded light curve against a grid of computed ones, the mean weighed by likelihood.

This is what the network has to be measured against: it knows the noise's size, the priors that injections are drawn
from, and the physics; only the limb darkening is that of the priors' middle, the density the catalogue's, and the noise
is taken to be white.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from astrofed.client.tasks.transits_physics import MOMENTS, Float64, covered
from astrofed.client.tasks.transits_samples import IMPACTS, LIMB_Q1, LIMB_Q2, RATIOS, Fold, standard
from astrofed.shared.models.transit_layout import BINS, REACH, TARGETS

RATIO = np.geomspace(*RATIOS, 48)
IMPACT = np.linspace(*IMPACTS, 16)
SMEAR = 0.05  # step of ln(exposure / central duration) at which computed light curves are kept


def fitted(folds: tuple[Fold, ...]) -> Tensor:
    """Return [sample, target] in widths (float64): the likelihood's means over the grid."""
    return torch.from_numpy(np.stack([_fitted(fold) for fold in folds]))


def _fitted(fold: Fold) -> Float64:
    smear = round(float(np.log(fold.exposure_days / fold.central_days)) / SMEAR) * SMEAR
    there = fold.count > 0
    weight = fold.count[there] / fold.scatter**2
    expected = _grid(smear)[..., there]
    misfit = ((expected - fold.missing[there]) ** 2 * weight).sum(axis=-1)
    likely = np.exp(-0.5 * (misfit - misfit.min()))
    chords = np.sqrt((1 + RATIO[:, None]) ** 2 - IMPACT**2)
    ratio = 10 ** ((likely * np.log10(RATIO)[:, None]).sum() / likely.sum())
    hours = 24 * fold.central_days * 10 ** ((likely * np.log10(chords)).sum() / likely.sum())
    return np.array([standard(TARGETS[0], ratio), standard(TARGETS[1], hours)])


@lru_cache(maxsize=128)
def _grid(smear: float) -> Float64:
    """Return [ratio, impact, bin] the missing light in the bins' middles, for ln(exposure / central duration)."""
    root, q2 = np.mean(LIMB_Q1) ** 0.5, np.mean(LIMB_Q2)
    limb = (float(2 * root * q2), float(root * (1 - 2 * q2)))
    middle = (np.arange(BINS) + 0.5) / BINS * 2 * REACH - REACH
    moments = middle[:, None] + np.exp(smear) * ((np.arange(MOMENTS) + 0.5) / MOMENTS - 0.5)
    distance = np.hypot(2 * moments, IMPACT[:, None, None])  # a disc is two radii wide
    shape = (len(IMPACT), BINS, MOMENTS)
    return np.stack([covered(distance.ravel(), k, limb).reshape(shape).mean(axis=-1) for k in RATIO.tolist()])
