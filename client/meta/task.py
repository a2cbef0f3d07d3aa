"""Mode 'meta': any task that has episodes, trained on those by the one training loop, and adapted at every site.

"loss" and all other metrics are those of the model adapted to the site by `meta.support_shots` samples; "unadapted/…"
are those of the shared model on the same samples. With a [privacy] section a training site's adapted model and its
scores stay at the site, since nothing protects the samples that it was adapted to; what it tells is the shared model's.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import nn

from astrofed.client.meta.adaptation import Adapter
from astrofed.client.meta.algorithms import MetaLoss
from astrofed.client.meta.episodes import AdaptedScores, Episodes, FewShot, kind_of
from astrofed.client.meta.keeping import keep
from astrofed.client.site import Site, SiteSummary
from astrofed.client.task import Statistics, Task, TrainInstruction, TrainOutcome
from astrofed.client.training import train_locally
from astrofed.shared.plan import Plan, PlanError


def few_shot_of(cls: type[Task], plan: Plan) -> type[FewShot[Any]]:
    """Return what gives a task's episodes, if the plan can have them.

    Raises:
        PlanError: the task has none, or not of the kind that the plan asks for.
    """
    if cls.few_shot is None:
        raise PlanError(
            f"task {plan.task.name!r} has no episodes, so mode 'meta' can't train it; use another mode, or a task that "
            "names its `few_shot`"
        )
    cls.few_shot.check(plan)
    check_warm_rounds(plan)
    return cls.few_shot


def _with_steps(plan: Plan, samples: int = 1) -> Plan:
    """The plan whose rounds have as many steps as its episodes make, each on so many samples for an episode."""
    assert plan.meta is not None
    size = plan.training.batch_size
    steps = plan.meta.steps(plan.rounds, size)
    training = plan.training.model_copy(update={"epochs": steps, "max_steps": steps, "batch_size": size * samples})
    return plan.model_copy(update={"training": training})


def check_warm_rounds(plan: Plan) -> None:
    """See that a plan's first rounds can be plain ones.

    Raises:
        PlanError: they would leave no episodes, or the plan has a [privacy] section.
    """
    assert plan.meta is not None
    warm = plan.meta.warm_rounds
    if warm >= plan.rounds:
        raise PlanError(f"meta.warm_rounds: {warm} of {plan.rounds} rounds leave none for episodes; lower it")
    if warm and plan.privacy is not None:
        raise PlanError("meta.warm_rounds: [privacy] counts on steps that are all alike; remove one of the two")


def _plain(cls: type[Task], plan: Plan, options: BaseModel, site: Site) -> Task | None:
    """The task by itself, for plain rounds; None where the plan has none."""
    assert plan.meta is not None
    if not plan.meta.warm_rounds:
        return None
    return cls(_with_steps(plan, plan.meta.support_shots + plan.meta.query_shots), options, site)


class MetaTask(Task):
    """One participant's side of meta-learning."""

    def __init__(self, cls: type[Task], plan: Plan, options: BaseModel, site: Site) -> None:
        """`cls`: the plan's task.

        Raises:
            PlanError: see `few_shot_of`.
        """
        super().__init__(_with_steps(plan), options, site)
        kind = few_shot_of(cls, plan)
        self._base = cls(self.plan, options, site)
        self._plain = _plain(cls, plan, options, site)
        self._few_shot: FewShot[Any] = kind(self._base)
        self._kind = kind_of(kind, plan)

    def summary(self) -> SiteSummary:
        """Return the task's own summary (and errors), with what is scored after adaptation."""
        told = self._base.summary()
        about = f"{told.description}; meta-learning over {self._kind}"
        return replace(told, num_eval_examples=self._few_shot.num_scored(), description=about)

    def statistics(self) -> dict[str, NDArray[np.float64]]:
        """Return the task's own statistics."""
        return self._base.statistics()

    def train(self, model: nn.Module, statistics: Statistics, instruction: TrainInstruction) -> TrainOutcome:
        """Train for one round's share of the plan's episodes; all draws of episodes are from the instruction's seed."""
        plan, few_shot = self.plan, self._few_shot
        assert plan.meta is not None
        if self._plain is not None and instruction.round <= plan.meta.warm_rounds:
            return self._plain.train(model, statistics, instruction)
        loss = MetaLoss(model, few_shot.loss(statistics), plan.meta)
        examples = self._base.summary().num_examples
        if plan.privacy is not None:
            generator = torch.Generator().manual_seed(instruction.seed)
            population = few_shot.population(statistics, loss, generator)
            return TrainOutcome(examples, few_shot.protection().train(model, population, instruction))
        steps = plan.training.max_steps

        def source(generator: torch.Generator) -> Iterator[Episodes[Any]]:
            return itertools.islice(few_shot.batches(statistics, generator, plan.training.batch_size), steps)

        fit = train_locally(model, source, loss, plan.training, instruction, plan.rounds)
        return TrainOutcome(examples, {"loss": fit.loss})

    def evaluate(self, model: nn.Module, statistics: Statistics, *, with_baselines: bool) -> dict[str, float]:
        """Adapt, score, and keep the site's own model at its home; keys as said above and in the task itself."""
        scores = self._adapt(model, statistics, with_baselines=with_baselines)
        if self.site.home is not None:
            keep(self.site.home, scores)
        if self.plan.privacy is not None and self.site.role == "train":
            return scores.before
        plain = {name: value for name, value in scores.before.items() if not name.startswith(("baseline/", "physics/"))}
        return {**scores.after, **{f"unadapted/{name}": value for name, value in plain.items()}}

    def evaluated_units(self, metric: str) -> int:
        """Return how many privacy units a metric is of; `unit_errors` has none: adapted ones are not of one unit."""
        return self._few_shot.evaluated_units(metric.removeprefix("unadapted/"))

    def showcase(self, model: nn.Module, statistics: Statistics) -> dict[str, Any]:
        """Return the task's own pictures, of the model adapted to this site where it has one."""
        own = self._few_shot.adapted(model, statistics, self._adapter(statistics))
        return self._base.showcase(own if own is not None else model, statistics)

    def _adapt(self, model: nn.Module, statistics: Statistics, *, with_baselines: bool) -> AdaptedScores:
        return self._few_shot.evaluate(model, statistics, self._adapter(statistics), with_baselines=with_baselines)

    def _adapter(self, statistics: Statistics) -> Adapter[Any]:
        assert self.plan.meta is not None
        return Adapter(self.plan.meta, self._few_shot.loss(statistics))
