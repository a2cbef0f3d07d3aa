"""How far predictions of planets are off: in kelvin and Earth radii, in dex, and as one dimensionless number."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from astrofed.client.tasks.planets_catalogue import TARGET_CENTRE, TARGET_WIDTH, Planets
from astrofed.shared.models.planet_layout import TARGETS

_FARTHEST = 20.0  # widths from the centre beyond which a prediction in physical units stays where it is


def unit_losses(predictions: Tensor, targets: Tensor, given: Tensor) -> Tensor:
    """Return [planet]: squared errors in widths, summed over a planet's targets and halved; absent targets count 0."""
    return ((predictions - targets).square() * given).sum(dim=1) / 2


@torch.no_grad()
def scores(predictions: Tensor, planets: Planets) -> dict[str, float]:
    """Return the errors of predictions [planet, target], both in widths around the centre (float64).

    "loss": root mean square error in widths over all targets there are. For each target that has a value, root mean
    square errors "rmse/pl_eqt" [K] and "rmse/pl_rade" [R_earth], and "dex/…" of log10 of the same.
    """
    given = planets.given.bool()
    centre, width = torch.from_numpy(TARGET_CENTRE), torch.from_numpy(TARGET_WIDTH)
    truth, predictions = planets.targets.double(), predictions.double()
    found = {"loss": _root_mean_square((predictions - truth)[given])}
    physical = 10 ** (torch.stack((predictions.clamp(-_FARTHEST, _FARTHEST), truth)) * width + centre)
    for index, name in enumerate(TARGETS):
        rows = given[:, index]
        if rows.any():
            found[f"rmse/{name}"] = _root_mean_square((physical[0] - physical[1])[rows, index])
            found[f"dex/{name}"] = _root_mean_square((predictions - truth)[rows, index] * width[index])
    return found


@torch.no_grad()
def unit_errors(predictions: Tensor, planets: Planets) -> dict[str, NDArray[np.float64]]:
    """Return the mean squared error of each privacy unit [unit] by the name of its score, in the score's unit squared.

    A unit's mean is over its targets there are; "rmse/…" and "dex/…" are of those units that have the target.
    """
    given = planets.given.bool()
    centre, width = torch.from_numpy(TARGET_CENTRE), torch.from_numpy(TARGET_WIDTH)
    truth, predictions = planets.targets.double(), predictions.double()
    found = {"loss": _by_unit((predictions - truth).square(), given, planets.unit)}
    physical = 10 ** (torch.stack((predictions.clamp(-_FARTHEST, _FARTHEST), truth)) * width + centre)
    for index, name in enumerate(TARGETS):
        one = slice(index, index + 1)
        rows = given[:, one]
        if rows.any():
            difference = physical[0, :, one] - physical[1, :, one]
            found[f"rmse/{name}"] = _by_unit(difference.square(), rows, planets.unit)
            found[f"dex/{name}"] = _by_unit(((predictions - truth)[:, one] * width[index]).square(), rows, planets.unit)
    return found


def scored_units(planets: Planets, score: str) -> int:
    """Return how many privacy units a score is of; 0 for a score that there isn't."""
    kind, _, target = score.partition("/")
    if score == "loss":
        return planets.num_units
    if kind not in ("rmse", "dex") or target not in TARGETS:
        return 0
    return len(np.unique(planets.unit[planets.given[:, TARGETS.index(target)].bool().numpy()]))


@torch.no_grad()
def predict(model: nn.Module, planets: Planets) -> Tensor:
    """Return a model's predictions [planet, target] in widths around the centre."""
    model.eval()
    predictions: Tensor = model(planets.features)
    return predictions


def baselines(planets: Planets) -> dict[str, Tensor]:
    """Return what is to be beaten, as predictions [planet, target] in widths around the centre, by name.

    "constant": every planet has 800 K and 3 Earth radii. "zero-albedo": the temperature by the formula for a planet
    that reflects nothing, and again 3 Earth radii, since nothing as simple predicts a radius from star and orbit.
    """
    constant = torch.zeros_like(planets.targets)
    formula = constant.clone()
    known = (planets.zero_albedo - float(TARGET_CENTRE[0])) / float(TARGET_WIDTH[0])
    formula[:, 0] = torch.where(known.isfinite(), known, 0.0)  # without it there is no target either
    return {"constant": constant, "zero-albedo": formula}


def _by_unit(squares: Tensor, given: Tensor, unit: NDArray[np.str_]) -> NDArray[np.float64]:
    """[planet, target], [planet, target], [planet] -> [unit]: means over what is given, of units that have any."""
    names, index = np.unique(unit, return_inverse=True)
    total = np.bincount(index, (squares * given).sum(dim=1).numpy(), minlength=len(names))
    count = np.bincount(index, given.sum(dim=1).numpy(), minlength=len(names))
    return total[count > 0] / count[count > 0]


def bare_metric(name: str) -> str:
    """Return which metric a baseline's metric is, without "baseline/<name>/"; any other name as it is."""
    return name.split("/", 2)[2] if name.startswith("baseline/") and name.count("/") > 1 else name


def baseline_scores(planets: Planets) -> dict[str, float]:
    """Return the errors of all baselines, by "baseline/<name>/<metric>"."""
    found = {name: scores(guesses, planets) for name, guesses in baselines(planets).items()}
    return {f"baseline/{name}/{key}": value for name, metrics in found.items() for key, value in metrics.items()}


def _root_mean_square(errors: Tensor) -> float:
    return float(errors.square().mean().sqrt())
