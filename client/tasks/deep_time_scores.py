"""Roll-outs over geological time and what is said of them: errors, baselines, geological constraints.

A constraint is left out where the history lacks its columns: then it is not evaluable. So is, for every history that
ships, the mantle's whole energy balance (the latent heat of its freezing is no column) and the oxygen left by escaped
water (the planet's mass and radius are none). What of the first can be seen is that the mantle cools by its secular
heat flow, with the heat capacity that the training period shows.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from astrofed.client.tasks.deep_time_histories import History
from astrofed.shared.models.history_layout import NAMES, QUANTITIES, unscaled
from astrofed.shared.physics import GEOLOGICAL_TOLERANCES, METRIC

SIGNS = {
    "radiogenic-decay": ("mantle_radiogenic_power", "core_radiogenic_power"),
    "cooling": ("mantle_temperature", "core_temperature"),
    "water-escape": ("surface_water",),
    "oxygen-build-up": ("oxygen",),
    "contraction": ("luminosity", "xuv_luminosity"),
}
"""Quantities that only change in their direction, and stay positive, by constraint."""
ENERGY, SATURATION = "secular-cooling", "xuv-saturation"
GYR_S = 3.15576e16
TW = 1e12
Step = Callable[[Tensor, Tensor], Tensor]
"""Takes the last two states [2, quantity] and the ageing [] that follows; returns the next state [quantity]."""


def rolled_out(history: History, step: Step) -> Tensor:
    """Return [moment, quantity] dimensionless states from the split to the end, each from the predictions before it."""
    states = list(history.states[history.split - 2 : history.split].float())
    for ageing in history.ageing[history.split - 1 : -1]:
        states.append(step(torch.stack(states[-2:]), ageing))
    return torch.stack(states[2:])


def model_step(model: nn.Module, history: History) -> Step:
    """Return the model's step."""
    given = history.given[None]

    def step(states: Tensor, ageing: Tensor) -> Tensor:
        predicted: Tensor = model(states[None], given, ageing.reshape(1, 1))
        return predicted[0]

    return step


BASELINES: dict[str, Step] = {
    "persistence": lambda states, ageing: states[1],
    "linear": lambda states, ageing: 2 * states[1] - states[0],
}


@torch.no_grad()
def scores(history: History, step: Step) -> dict[str, float]:
    """Return the roll-out's metrics: "loss" dimensionless, "rmse/…" in own units, "physics/…/compliance" as shares."""
    predicted = rolled_out(history, step).double()
    truth = history.states[history.split :]
    there = history.given.bool()
    metrics = {"loss": float((predicted - truth)[:, there].square().mean().sqrt())}
    own, true = unscaled(predicted), unscaled(truth)
    for index, quantity in enumerate(QUANTITIES):
        if there[index]:
            metrics[f"rmse/{quantity.name}"] = _finite((own[:, index] - true[:, index]).square().mean().sqrt())
    return metrics | compliance(history, predicted)


def compliance(history: History, predicted: Tensor) -> dict[str, float]:
    """Return for each constraint that can be evaluated the share of steps in which it holds, and its tolerance.

    Args:
        history: where the roll-out began, and what the history has.
        predicted: [moment, quantity] dimensionless states from the split on.
    """
    path = torch.cat([history.states[history.split - 1 : history.split], predicted.double()])
    own, there = unscaled(path), dict(zip(NAMES, history.given.tolist(), strict=True))
    found: dict[str, float] = {}
    for name, quantities in SIGNS.items():
        columns = [index for index, quantity in enumerate(NAMES) if quantity in quantities and there[quantity]]
        if columns:
            signs = torch.tensor([QUANTITIES[index].sign for index in columns])
            least = -GEOLOGICAL_TOLERANCES[name]
            holds = (path.diff(dim=0)[:, columns] * signs >= least) & (own[1:, columns] >= least)
            found |= _told(name, holds.all(dim=1))
    if there["mantle_temperature"] and there["secular_heat_flow"]:
        capacity = float(_capacity(history, unscaled(history.states[: history.split])).median())
        off = (_capacity(history, own) / capacity - 1).abs()
        found |= _told(ENERGY, off <= GEOLOGICAL_TOLERANCES[ENERGY])
    if there["luminosity"] and there["xuv_luminosity"]:
        whole = unscaled(history.states[: history.split])
        ratio, usual = _saturation(own)[1:], _saturation(whole).median()
        found |= _told(SATURATION, (ratio / usual - 1).abs() <= GEOLOGICAL_TOLERANCES[SATURATION])
    return found


def _capacity(history: History, own: Tensor) -> Tensor:
    """Return [step] the mantle's heat capacity, J/K, as each step's secular heat flow and cooling imply it."""
    flow = own[:, NAMES.index("secular_heat_flow")]
    cooling = -own[:, NAMES.index("mantle_temperature")].diff() / (history.step * GYR_S)
    return 0.5 * (flow[1:] + flow[:-1]) * TW / cooling


def _saturation(own: Tensor) -> Tensor:
    return own[:, NAMES.index("xuv_luminosity")] / own[:, NAMES.index("luminosity")]


def _told(name: str, holds: Tensor) -> dict[str, float]:
    found = {"compliance": float(holds.double().mean()), "tolerance": GEOLOGICAL_TOLERANCES[name]}
    return {f"{METRIC}{name}/{key}": value for key, value in found.items()}


def _finite(value: Tensor) -> float:
    return min(float(value), 1e30)
