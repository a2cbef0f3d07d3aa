"""How good predictions of transits are: on held-out injections, and on real planets against what was published."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from astrofed.client.tasks.surrogate_scores import conformal, errors, half, uncertainty
from astrofed.client.tasks.transits_photometry import Known
from astrofed.client.tasks.transits_samples import Samples, by_box
from astrofed.client.tasks.transits_templates import fitted
from astrofed.shared.models.transit_layout import TARGETS, FoldedTransits
from astrofed.shared.uncertainty import conformal_factor

RATIO = TARGETS[0]


@torch.no_grad()
def predict(model: nn.Module, seen: FoldedTransits) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [sample, target] in widths (float64)."""
    model.eval()
    out: Tensor = model(seen.series, seen.scalars)
    return out[..., 0].double(), out[..., 1].double()


def scores(mean: Tensor, spread: Tensor, tests: Samples, site: str) -> dict[str, float]:
    """Return errors, uncertainty and conformal intervals on held-out injections (keys: `surrogate_scores`)."""
    found = errors(mean, tests, targets=TARGETS) | uncertainty(mean, spread, tests, TARGETS)
    return found | conformal(mean, spread, tests, site, TARGETS)


def reach(mean: Tensor, spread: Tensor, tests: Samples, site: str) -> float | None:
    """Return how many standard deviations the radius ratio's conformal interval reaches; None: too few injections."""
    z = ((tests.targets.double() - mean) / spread).abs()[:, 0].numpy()
    return conformal_factor(z[half(len(tests), site)])


def known_error(mean: Tensor, real: Samples) -> dict[str, float]:
    """Return "rmse/known_planets": of log10 of the radius ratios of the star's real planets, dex; none: no planets."""
    if not len(real):
        return {}
    off = RATIO.width * (mean - real.targets.double())[:, 0]
    return {"rmse/known_planets": float(off.square().mean().sqrt())}


def known_planets(mean: Tensor, spread: Tensor, known: Known, factor: float | None) -> dict[str, float]:
    """Return "real/<planet>/…" by planet: "radius_ratio", its conformal interval's "low" and "high", "published"."""
    found: dict[str, float] = {}
    for row, planet in enumerate(known.planets):
        values = {"radius_ratio": _ratio(mean[row, 0]), "published": planet.radius_ratio}
        if factor is not None:
            values |= {
                "low": _ratio(mean[row, 0] - factor * spread[row, 0]),
                "high": _ratio(mean[row, 0] + factor * spread[row, 0]),
            }
        found |= {f"real/{planet.name}/{key}": value for key, value in values.items()}
    return found


def baselines(samples: Samples) -> Mapping[str, Tensor]:
    """Return what is to be beaten, as predictions [sample, target] in widths.

    "constant": the middle of what is drawn. "box": the mean depth within the box that fits best, at the known ephemeris
    (Kovács et al. 2002, A&A 391, 369), its root and its width. "fit": transits fitted (`transits_templates`).
    """
    boxes = torch.tensor(np.array([by_box(fold) for fold in samples.folds]).reshape(-1, len(TARGETS)))
    return {"constant": torch.zeros_like(boxes), "box": boxes, "fit": torch.from_numpy(fitted(samples.folds)[..., 0])}


def baseline_scores(tests: Samples, real: Samples) -> dict[str, float]:
    """Return all baselines' errors on held-out injections and on the real planets, by "baseline/<name>/<metric>"."""
    found = {name: errors(guess, tests, targets=TARGETS) for name, guess in baselines(tests).items()}
    for name, guess in baselines(real).items() if len(real) else ():
        found[name] |= known_error(guess, real)
    return {f"baseline/{name}/{key}": value for name, metrics in found.items() for key, value in metrics.items()}


def _ratio(standard: Tensor) -> float:
    return float(10 ** (RATIO.centre + RATIO.width * float(standard)))
