"""Figures of merit for a report: losses by round, errors by variable against the baselines, physics compliance.

The training sites' held-out data and the unseen participants are two populations with the same figures. All of them are
means of what the sites themselves reported.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from astrofed.shared.physics import constraints_of
from astrofed.shared.plan import Plan
from astrofed.shared.record import Round
from astrofed.shared.registry import normalise

BASELINES = ("persistence", "climatology", "ridge")  # shown first, in this order
_DATA = "data"  # under "baseline/data/…" stands how well the data themselves comply
_MOST = 60  # names come from the sites: no more than this many are shown


@dataclass(frozen=True)
class Variable:
    """One variable's root mean square errors."""

    name: str
    unit: str
    model: float
    baselines: dict[str, float]
    levels: tuple[float, ...]  # by model level, top first; empty: no levels
    initial_levels: tuple[float, ...]  # the same for the initial model


@dataclass(frozen=True)
class Scores:
    """How well the model does on one population."""

    losses: dict[int, float]  # by round, where evaluated
    baselines: dict[str, float]  # headline loss by name
    variables: tuple[Variable, ...]  # of the last evaluated round

    @property
    def last(self) -> tuple[int, float]:
        """The last evaluated round and its loss."""
        return list(self.losses.items())[-1]


@dataclass(frozen=True)
class Compliance:
    """How far one physical constraint is kept; None: not evaluable."""

    constraint: str
    model: float | None
    tolerance: float | None
    data: float | None


def scores(rounds: Sequence[Round], population: str) -> Scores | None:
    """Return the scores on a population, "metrics" (training sites) or "unseen"; None if never evaluated."""
    by_round: dict[int, Mapping[str, float]] = {entry.round: getattr(entry, population) for entry in rounds}
    losses = {number: metrics["loss"] for number, metrics in by_round.items() if "loss" in metrics}
    if not losses:
        return None
    first, last = by_round[0], by_round[max(losses)]
    names = baseline_names(first)
    variables = [key.removeprefix("rmse/") for key in last if re.fullmatch("rmse/[^/]+", key)][:_MOST]
    return Scores(
        losses=losses,
        baselines={name: first[f"baseline/{name}/loss"] for name in names},
        variables=tuple(_variable(name, first, last, names) for name in variables),
    )


def baseline_names(metrics: Mapping[str, float]) -> list[str]:
    """Return the baselines that metrics hold a headline loss of, the usual ones first."""
    found = [match[1] for key in metrics if (match := re.fullmatch("baseline/([^/]+)/loss", key)) and match[1] != _DATA]
    return sorted(found, key=lambda name: BASELINES.index(name) if name in BASELINES else len(BASELINES))[:_MOST]


def physics(rounds: Sequence[Round]) -> tuple[Compliance, ...]:
    """Return every constraint's compliance in the last evaluated round; empty where a task knows no physics."""
    evaluated = [entry.metrics for entry in rounds if any(key.startswith("physics/") for key in entry.metrics)]
    if not evaluated:
        return ()
    first, last = rounds[0].metrics, evaluated[-1]
    return tuple(
        Compliance(
            constraint=name,
            model=last.get(f"physics/{name}/compliance"),
            tolerance=last.get(f"physics/{name}/tolerance"),
            data=first.get(f"baseline/{_DATA}/physics/{name}/compliance"),
        )
        for name in constraints_of(last)
    )


def loss_phrase(plan: Plan) -> str:
    """Return what the headline loss is measured in, to follow the number; empty where the task doesn't say."""
    return " of a typical month-to-month change" if normalise(plan.task.name) == "datacube" else ""


def _variable(name: str, first: Mapping[str, float], last: Mapping[str, float], baselines: Sequence[str]) -> Variable:
    keys = {baseline: f"baseline/{baseline}/rmse/{name}" for baseline in baselines}
    return Variable(
        name=name,
        unit=_unit(name),
        model=last[f"rmse/{name}"],
        baselines={baseline: first[key] for baseline, key in keys.items() if key in first},
        levels=_levels(name, last),
        initial_levels=_levels(name, first),
    )


def _levels(name: str, metrics: Mapping[str, float]) -> tuple[float, ...]:
    """Return errors by level for as long as the level indices 0, 1, … are all there."""
    found: list[float] = []
    while (key := f"rmse/{name}/{len(found)}") in metrics:
        found.append(metrics[key])
    return tuple(found) if len(found) > 1 else ()


def _unit(name: str) -> str:
    from astrofed.shared.models import spectrum_layout, surrogate_layout, transit_layout
    from astrofed.shared.models.datacube_layout import VARIABLES

    if name in VARIABLES:
        return VARIABLES[name].unit
    targets = (*surrogate_layout.TARGETS, *transit_layout.TARGETS, *spectrum_layout.TARGETS)
    return next((target.unit for target in targets if target.name == name), "")
