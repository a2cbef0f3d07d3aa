"""When the epsilon of central privacy holds: what a plan, and what sites gather for it, must and must not say."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from astrofed.shared.plan import CentralPrivacy, Plan, PlanError

STRATEGY = "private-mean"


def check_shared(plan: Plan) -> None:
    """See that noise which participants share can cancel.

    Raises:
        PlanError: the strategy weighs replies, looks at single ones, or goes on without some; or islands train apart.
    """
    if not plan.shares_noise:
        return
    strategy, why = plan.strategy, "privacy.shared_noise cancels only in the plain mean of all replies"
    if strategy.name != "robust" or strategy.rule != "mean" or strategy.pre or strategy.f:
        raise PlanError(
            f"strategy: {why}, and single ones tell nothing to a robust rule: set strategy.name = 'robust', "
            "rule = 'mean' and f = 0, or remove shared_noise"
        )
    for key, mistaken in {
        "weights": strategy.weights != "equal",
        "buffer": strategy.buffer is not None,
        "membership": strategy.membership != "fixed",
        "max_norm": strategy.max_norm is not None,
        "quorum": strategy.quorum not in (1, len(plan.trainers)),
    }.items():
        if mistaken:
            raise PlanError(f"strategy.{key}: {why}; remove the key, or remove privacy.shared_noise")
    if plan.mode == "multimodal":
        raise PlanError(
            "privacy.shared_noise: in mode 'multimodal' a site trains the blocks of its own modalities alone, so noise "
            "on the others would not cancel; remove shared_noise"
        )
    if plan.evolution is not None and plan.evolution.islands:
        raise PlanError(
            "privacy.shared_noise: islands train by themselves, with nobody to share noise with; set "
            "evolution.islands = false, or remove shared_noise"
        )


def against_whom(plan: Plan) -> str:
    """Say against whom epsilon holds where noise is shared."""
    assert plan.privacy is not None and plan.privacy.shared_noise is not None
    colluding = plan.privacy.shared_noise.colluding
    others = f"more than {colluding} of the training participants" if colluding else "any training participant"
    return (
        f"noise is shared by {len(plan.trainers)} participants: epsilon holds against who sees all messages and all "
        f"models, but neither keys nor noise of {others}; one that lies or stays away undoes a round"
    )


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
