"""When the epsilon of central privacy holds: what a plan, and what sites gather for it, must and must not say."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from astrofed.shared.plan import CentralPrivacy, Plan, PlanError

STRATEGY = "private-mean"


class StatisticsTell(PlanError):
    """Sites' pooled statistics say something of their data that no noise hides."""


def check_central(plan: Plan) -> CentralPrivacy | None:
    """Return the plan's [central_privacy] section if its epsilon can hold; None where there is neither it nor need.

    Raises:
        PlanError: the strategy, weights, quorum or delta void it; or the strategy needs a section that is missing.
    """
    section, strategy = plan.central_privacy, plan.strategy
    if section is None:
        if strategy.name == STRATEGY:
            raise PlanError(
                f"strategy {STRATEGY!r} needs a [central_privacy] section: epsilon or noise_multiplier, and delta"
            )
        return None
    if strategy.name != STRATEGY:
        raise PlanError(f"central_privacy: {_why_not(strategy.name)}; set strategy.name = {STRATEGY!r}")
    if strategy.rule is not None or strategy.pre or strategy.f is not None:
        key = "rule" if strategy.rule is not None else "pre" if strategy.pre else "f"
        raise PlanError(f"strategy.{key}: {_why_not('robust')}; remove it beside [central_privacy]")
    if strategy.weights != "equal":
        raise PlanError(
            "strategy.weights: 'examples' lets a participant choose its own weight, so clipping would bound nothing; "
            "beside [central_privacy] all count alike: remove it"
        )
    if strategy.quorum > 1:
        raise PlanError(
            f"strategy.quorum: {strategy.quorum} would leave the model as it was or not by who replied, which no noise "
            "hides; beside [central_privacy] a missing reply is an update of zero: remove it"
        )
    if plan.mode in ("nas", "evolution"):
        raise PlanError(
            "central_privacy: a search releases the models of all its candidates, and epsilon is counted for one run "
            "alone; search without [central_privacy], or run the candidate that you chose as a plan of its own"
        )
    n = len(plan.trainers)
    if section.delta >= 1 / n:
        raise PlanError(
            f"central_privacy.delta: {section.delta:g} would allow to give one of {n} participants away whole; "
            f"give less than {1 / n:.3g}"
        )
    if section.cohorts is not None and section.cohorts > n:
        raise PlanError(f"central_privacy.cohorts: {section.cohorts} groups can't be made of {n} participants")
    return section


def _why_not(strategy: str) -> str:
    if strategy == "robust":
        return (
            "a robust rule chooses and weighs updates by one another, so that one participant moves the result by "
            "more than its own clipped update, and no noise is known that hides it"
        )
    return (
        f"{strategy!r} neither clips updates nor gives them fixed weights, so what one participant moves has no bound"
    )


def check_statistics(plan: Plan, by_site: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> None:
    """Refuse statistics that differ between sites, since all sites see the pooled ones; constants pass.

    Raises:
        StatisticsTell: see there.
    """
    if plan.central_privacy is None:
        return
    first: Mapping[str, NDArray[np.float64]] = {}
    for own in by_site.values():
        first = first or own
        if own and (own.keys() != first.keys() or not all(np.array_equal(own[key], first[key]) for key in own)):
            raise StatisticsTell(
                f"task {plan.task.name!r} pools statistics of the sites' data, which leave without noise and are not "
                "covered by central_privacy's epsilon: use a task that standardises by public constants, or add a "
                "[privacy] section where the task then does"
            )
