"""Episodes: what a task's few-shot learner trains on, and what a learning problem has to give for that.

An episode is one task (a world, a star, a site) seen through two disjoint sets of samples: the support, to which the
weights are adapted, and the query, which says how good the adapted weights are.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from astrofed.client.privacy.gradients import Units
from astrofed.client.privacy.protection import Protection
from astrofed.client.privacy.units import Population
from astrofed.client.task import Statistics
from astrofed.client.training import Loss
from astrofed.shared.plan import Meta, Plan, PlanError

if TYPE_CHECKING:
    from astrofed.client.meta.adaptation import Adapter
    from astrofed.client.meta.algorithms import MetaLoss

B = TypeVar("B")


@dataclass(frozen=True)
class Episode(Generic[B]):
    """One task's two disjoint sets of samples."""

    support: B
    query: B


@dataclass(frozen=True)
class Stacked:
    """Episodes of equal shape: tensors [episode, shot, …] in the order of the loss's batch."""

    support: Units
    query: Units


Episodes = Sequence[Episode[B]] | Stacked
"""What one step trains on."""


@dataclass(frozen=True)
class AdaptedScores:
    """How a model does at a site before and after adaptation, on the same held-out samples."""

    before: dict[str, float]
    after: dict[str, float]
    model: nn.Module | None  # the site's own; None where every one of its tasks has another


class FewShot(ABC, Generic[B]):
    """A learning problem as tasks with few samples each. A `Task` names its own kind in `Task.few_shot`."""

    kinds: ClassVar[tuple[str, ...]]
    """What one task can be; the first is the default of the plan's `meta.tasks`."""

    def __init__(self, task: Any) -> None:
        assert task.plan.meta is not None
        self.meta: Meta = task.plan.meta
        self.kind = kind_of(type(self), task.plan)

    @classmethod
    def check(cls, plan: Plan) -> None:
        """Refuse a plan that can't work, before any data are read.

        Raises:
            PlanError: the plan's tasks are none of `kinds`, or can't be private.
        """
        kind_of(cls, plan)

    @abstractmethod
    def loss(self, statistics: Statistics) -> Loss[B]:
        """Return the loss of one task's samples; here and below `statistics` are the pooled ones."""

    @abstractmethod
    def batches(self, statistics: Statistics, generator: torch.Generator, size: int) -> Iterator["Episodes[B]"]:
        """Yield, without end, `size` episodes of training samples each time; all draws from `generator`."""

    @abstractmethod
    def population(self, statistics: Statistics, loss: "MetaLoss[B]", generator: torch.Generator) -> Population:
        """Return the site's privacy units, each with the episodes that it alone makes up."""

    @abstractmethod
    def protection(self) -> Protection:
        """Return what protects the site's dataset; the plan has a [privacy] section."""

    @abstractmethod
    def evaluate(
        self, model: nn.Module, statistics: Statistics, adapter: "Adapter[B]", *, with_baselines: bool
    ) -> AdaptedScores:
        """Score a model on samples held out from training and from adaptation; keys as in `Task.evaluate`."""

    def adapted(self, model: nn.Module, statistics: Statistics, adapter: "Adapter[B]") -> nn.Module | None:
        """Return the site's own model of `evaluate`; a kind of task that needs no scores for it says how."""
        return self.evaluate(model, statistics, adapter, with_baselines=False).model

    @abstractmethod
    def num_scored(self) -> int:
        """Return how many samples `evaluate` scores."""

    def evaluated_units(self, metric: str) -> int:
        """Return how many privacy units a metric of `evaluate` is of; 1 where that isn't known, see `Task`."""
        return 1


def kind_of(cls: type[FewShot[Any]], plan: Plan) -> str:
    """Return what one task is in a plan of mode 'meta'.

    Raises:
        PlanError: the plan's task has no tasks of that kind.
    """
    assert plan.meta is not None
    asked = plan.meta.tasks or cls.kinds[0]
    if asked not in cls.kinds:
        raise PlanError(
            f"meta.tasks: {asked!r} are no tasks of {plan.task.name!r}; give one of: {', '.join(cls.kinds)}"
        )
    return asked
