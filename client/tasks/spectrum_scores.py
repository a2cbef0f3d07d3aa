"""How well depths in bins are predicted: against the bins' own errors, and beside what a site could say alone."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from astrofed.client.tasks.spectrum_bins import Bins
from astrofed.client.tasks.surrogate_scores import conformal, errors, uncertainty
from astrofed.shared.models.surrogate_layout import Target


class Measured(NamedTuple):
    """Bins as the network sees them."""

    edges: Tensor  # [bin, edge] float32, ln of um
    targets: Tensor  # [bin, 1] float32, depth in widths
    error: Tensor  # [bin, 1] float32, the depth's standard deviation in widths

    @property
    def given(self) -> Tensor:
        """[bin, 1] 1: each bin has a depth."""
        return torch.ones_like(self.targets)


def measured(bins: Bins, depth: Target) -> Measured:
    """Return bins on the depth's scale."""
    values = (bins.edges, (bins.depth[:, None] - depth.centre) / depth.width, bins.error[:, None] / depth.width)
    return Measured(*(torch.tensor(each, dtype=torch.float32) for each in values))


@torch.no_grad()
def predict(model: nn.Module, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [bin, 1] of the planet's depth, in widths (float64)."""
    model.eval()
    out: Tensor = model(edges).double()
    return out[:, :1], out[:, 1:]


def scores(mean: Tensor, spread: Tensor, tests: Measured, depth: Target) -> dict[str, float]:
    """Return how good predictions of bins are; what a bin should measure has its own error beside the prediction's.

    "chi_square" is the mean square of misses in the bins' own errors, 1 where nothing but these is missed, and "loss"
    its root; "rmse/depth" is in ppm. "nll", "crps/depth", "coverage/depth" and others (`surrogate_scores.uncertainty`)
    are of Gaussians whose variance is the prediction's and the bin's.

    Args:
        mean, spread: [bin, 1] of the planet's depth, in widths.
        tests: the bins.
        depth: its name, unit and scale.
    """
    error = tests.error.double()
    found = errors(mean, tests, targets=(depth,)) | uncertainty(mean, torch.hypot(spread, error), tests, (depth,))
    chi_square = float(((tests.targets.double() - mean) / error).square().mean())
    return found | {"chi_square": chi_square, "loss": chi_square**0.5}


def intervals(mean: Tensor, spread: Tensor, tests: Measured, site: str, depth: Target) -> dict[str, float]:
    """Return what conformal intervals of bins come to (`surrogate_scores.conformal`; arguments as of `scores`)."""
    return conformal(mean, torch.hypot(spread, tests.error.double()), tests, site, (depth,))


def baselines(training: Bins | None, tests: Bins) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return what a site could say of its tests alone, by name: depth and its standard deviation [bin] in ppm.

    "constant": the error-weighted mean of the bins to train on, with their scatter beyond their errors.
    "interpolation": straight lines between neighbours among these, with their errors (none where a site doesn't
    train). A site that only evaluates has no such bins: its "constant" is its tests' own, the best that there is.
    """
    own = tests if training is None else training
    weight = own.error**-2.0
    mean = float(np.average(own.depth, weights=weight))
    excess = max(float(np.average((own.depth - mean) ** 2 - own.error**2, weights=weight)), 0.0)
    found = {"constant": (np.full(len(tests), mean), np.full(len(tests), excess**0.5))}
    if training is not None:
        after = np.clip(np.searchsorted(own.wavelength, tests.wavelength), 1, len(own) - 1)
        left, right = own.wavelength[after - 1], own.wavelength[after]
        share = np.clip((tests.wavelength - left) / np.maximum(right - left, 1e-12), 0.0, 1.0)
        line = (1 - share) * own.depth[after - 1] + share * own.depth[after]
        found["interpolation"] = line, np.hypot((1 - share) * own.error[after - 1], share * own.error[after])
    return found


def baseline_scores(training: Bins | None, tests: Bins, depth: Target) -> dict[str, float]:
    """Return all baselines' scores on the same tests, by "baseline/<name>/<metric>"."""
    seen = measured(tests, depth)
    found: dict[str, float] = {}
    for name, (guess, spread) in baselines(training, tests).items():
        mean = torch.from_numpy((guess - depth.centre) / depth.width)[:, None]
        each = scores(mean, torch.from_numpy(spread / depth.width)[:, None], seen, depth)
        found |= {f"baseline/{name}/{key}": value for key, value in each.items()}
    return found
