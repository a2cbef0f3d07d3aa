"""How good a surrogate's predictions and their uncertainty are, and whether its intervals hold what they promise."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from astrofed.client.tasks.surrogate_samples import Samples
from astrofed.shared.models.surrogate_layout import MODALITIES, TARGETS, Observations, Target
from astrofed.shared.seeds import derive_seed
from astrofed.shared.uncertainty import (
    LEVEL,
    LEVELS,
    conformal_factor,
    gaussian_crps,
    gaussian_nll,
    half_width,
    histogram,
    mixture,
)

BATCH = 1024


class Truths(Protocol):
    """What is true of samples; rows agree."""

    @property
    def targets(self) -> Tensor:
        """[sample, target] in widths; 0 where there is none."""

    @property
    def given(self) -> Tensor:
        """[sample, target] 1 where there is a target, else 0."""


@torch.no_grad()
def predict(model: nn.Module, seen: Observations) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [sample, target] in widths (float64), of the ensemble if there are several."""
    model.eval()
    found = []
    for rows in torch.split(torch.arange(len(seen)), BATCH):
        means, spreads = model(seen.at(rows))
        found.append(mixture(means.double(), spreads.double()))
    return torch.cat([mean for mean, _ in found]), torch.cat([spread for _, spread in found])


def errors(mean: Tensor, samples: Truths, prefix: str = "", targets: Sequence[Target] = TARGETS) -> dict[str, float]:
    """Return "loss", the root mean square error in widths over all targets there are, and "rmse/…" in units."""
    given, squares = samples.given.bool(), (mean - samples.targets.double()).square()
    found = {f"{prefix}loss": float(squares[given].mean().sqrt())}
    for index, target in enumerate(targets):
        own = squares[given[:, index], index]
        if len(own):
            found[f"{prefix}rmse/{target.name}"] = target.width * float(own.mean().sqrt())
    return found


def uncertainty(mean: Tensor, spread: Tensor, samples: Truths, targets: Sequence[Target] = TARGETS) -> dict[str, float]:
    """Return how good the Gaussians are.

    "nll" [nats] and "crps" in widths, over all targets; for each target "crps/…" and "sharpness/…" (the mean width of
    90 % intervals) in its unit and "coverage/…" of these; "reliability/…" by nominal level in percent, over all.
    """
    truth, given = samples.targets.double(), samples.given.bool()
    crps, z = gaussian_crps(mean, spread, truth), ((truth - mean) / spread).abs()
    found = {"nll": float(gaussian_nll(mean, spread, truth)[given].mean()), "crps": float(crps[given].mean())}
    reach = half_width(LEVEL)
    for index, target in enumerate(targets):
        rows = given[:, index]
        if rows.any():
            found[f"crps/{target.name}"] = target.width * float(crps[rows, index].mean())
            found[f"sharpness/{target.name}"] = target.width * float(2 * reach * spread[rows, index].mean())
            found[f"coverage/{target.name}"] = float((z[rows, index] <= reach).double().mean())
    for level in LEVELS:
        found[f"reliability/{round(100 * level)}"] = float((z[given] <= half_width(level)).double().mean())
    return found


def conformal(
    mean: Tensor, spread: Tensor, samples: Truths, site: str, targets: Sequence[Target] = TARGETS
) -> dict[str, float]:
    """Return what split-conformal intervals come to: one random half of the samples calibrates, the other tests.

    "conformal/coverage" over all targets, and for each "conformal/coverage/…" and "conformal/width/…" (mean width in
    its unit); a target with too few scores is left out. "conformal/calibration/…/bin" and "conformal/test/…/bin" are
    the counts of scores on the public grid, by which the report pools the sites.
    """
    calibrates = half(len(samples.targets), site)
    z = ((samples.targets.double() - mean) / spread).abs().numpy()
    given, widths = samples.given.bool().numpy(), spread.numpy()
    found: dict[str, float] = {}
    inside = []
    for index, target in enumerate(targets):
        scores = {
            "calibration": z[given[:, index] & calibrates, index],
            "test": z[given[:, index] & ~calibrates, index],
        }
        for kind, own in scores.items():
            found |= {f"conformal/{kind}/{target.name}/{b}": float(count) for b, count in histogram(own).items()}
        factor = conformal_factor(scores["calibration"])
        if factor is not None and len(scores["test"]):
            covered = scores["test"] <= factor
            inside.append(covered)
            found[f"conformal/coverage/{target.name}"] = float(covered.mean())
            width = 2 * factor * widths[given[:, index] & ~calibrates, index].mean()
            found[f"conformal/width/{target.name}"] = float(target.width * width)
    if inside:
        found["conformal/coverage"] = float(np.concatenate(inside).mean())
    return found


def half(count: int, site: str) -> NDArray[np.bool_]:
    """Return [sample] which half of a site's held-out samples calibrates: a random one, always the same."""
    order = np.random.default_rng(derive_seed(0, "calibration", site)).permutation(count)
    return np.asarray(order < count // 2)


def with_fewer(model: nn.Module, samples: Samples) -> dict[str, float]:
    """Return the loss with each modality alone, and without each of them: "only/…/loss" and "without/…/loss".

    Of the modalities that the site has; nothing where it has but one.
    """
    own = [name for index, name in enumerate(MODALITIES) if bool(samples.seen.present[:, index].any())]
    found: dict[str, float] = {}
    if len(own) > 1:
        for name in own:
            for kind, kept in (("only", [name]), ("without", [other for other in own if other != name])):
                mean, _ = predict(model, samples.seen.only(kept))
                found[f"{kind}/{name}/loss"] = errors(mean, samples)["loss"]
    return found


def baselines(samples: Samples) -> Mapping[str, Tensor]:
    """Return what is to be beaten, as predictions [sample, target] in widths.

    "persistence": the last observed month's values. "climatology": the target month's in the world's other epochs.
    "anomaly persistence": the climatology, moved by how far the last observed month lay from its own. All three know
    the true present state, which the site's modalities may not show.
    """
    now, usual, usual_now = (torch.nan_to_num(t.double()) for t in (samples.now, samples.usual, samples.usual_now))
    found = {"persistence": now}
    if bool(torch.isfinite(samples.usual[samples.given.bool()]).all()):
        found |= {"climatology": usual, "anomaly persistence": usual + now - usual_now}
    return found
