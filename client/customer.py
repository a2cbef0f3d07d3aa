"""Mode 'customer': a customer's site in a federation, which also gets a model of its own from the shared one.

The shared model is trained as in any federation. At every evaluation the customer's site trains a copy of it further on
its own data, by the one training loop, and scores both. Its own model is kept at its home and never leaves; it is
trained without noise, so with privacy its scores stay there as well. Else they are told as "adapted/…".
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import nn

from astrofed.client.meta.episodes import AdaptedScores
from astrofed.client.meta.keeping import keep
from astrofed.client.site import Site, SiteSummary
from astrofed.client.task import Statistics, Task, TrainInstruction, TrainOutcome
from astrofed.shared.plan import Plan
from astrofed.shared.seeds import derive_seed

ADAPTED = "adapted/"


class CustomerTask(Task):
    """The plan's task at the customer's site."""

    def __init__(self, cls: type[Task], plan: Plan, options: BaseModel, site: Site) -> None:
        """`cls`: the plan's task."""
        super().__init__(plan, options, site)
        self._base = cls(plan, options, site)
        self._own = cls(_own_plan(plan), options, site)

    def summary(self) -> SiteSummary:
        """Return the task's own summary (and errors)."""
        return self._base.summary()

    def statistics(self) -> dict[str, NDArray[np.float64]]:
        """Return the task's own statistics."""
        return self._base.statistics()

    def train(self, model: nn.Module, statistics: Statistics, instruction: TrainInstruction) -> TrainOutcome:
        """Train the shared model as any site."""
        return self._base.train(model, statistics, instruction)

    def evaluate(self, model: nn.Module, statistics: Statistics, *, with_baselines: bool) -> dict[str, float]:
        """Score the shared model and the site's own."""
        shared = self._base.evaluate(model, statistics, with_baselines=with_baselines)
        own = copy.deepcopy(model)
        seed = derive_seed(self.plan.seed, "customer", self.site.name)
        self._own.train(own, statistics, TrainInstruction(round=1, seed=seed))
        after = self._own.evaluate(own, statistics, with_baselines=False)
        if self.site.home is not None:
            keep(self.site.home, AdaptedScores(shared, after, own))
        if self.plan.privacy is not None:
            return shared
        return {**shared, **{f"{ADAPTED}{name}": value for name, value in after.items() if name[:8] != "physics/"}}

    def evaluated_units(self, metric: str) -> int:
        """Return how many privacy units a metric is of."""
        return self._base.evaluated_units(metric.removeprefix(ADAPTED))

    def unit_errors(self, model: nn.Module, statistics: Statistics) -> Mapping[str, NDArray[np.float64]]:
        """Return the shared model's; the own model's are not of one unit alone."""
        return self._base.unit_errors(model, statistics)

    def showcase(self, model: nn.Module, statistics: Statistics) -> dict[str, Any]:
        """Return the task's own pictures, of the shared model."""
        return self._base.showcase(model, statistics)


def _own_plan(plan: Plan) -> Plan:
    """The plan by which the site trains its own model: no noise, its own number of epochs, one learning rate."""
    assert plan.customer is not None
    rate = plan.customer.learning_rate or plan.training.learning_rate
    training = plan.training.model_copy(
        update={"epochs": plan.customer.epochs, "max_steps": None, "learning_rate": rate, "decay": 1.0}
    )
    return plan.model_copy(update={"training": training, "privacy": None, "central_privacy": None})
