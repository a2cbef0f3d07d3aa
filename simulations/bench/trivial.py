"""A task that costs nothing: each participant adds its number to every weight. What remains of a round is overhead.

A participant's data is named "add:0.5". Loaded as a plug-in file, as a user's own would be.
"""

import hashlib
from typing import Annotated, Self

import torch
from pydantic import BaseModel, Field
from torch import nn

from astrofed.client.site import Site, SiteSummary
from astrofed.client.task import Statistics, Task, TrainInstruction, TrainOutcome
from astrofed.shared import registry
from astrofed.shared.models.base import Model
from astrofed.shared.plan import Plan, Section


@registry.register("models", "vector")
class Vector(Model):
    """Nothing but weights, all zero."""

    class Options(Section):
        """How many weights."""

        parameters: Annotated[int, Field(ge=1)] = 1000

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(parameters))

    @classmethod
    def from_plan(cls, plan: Plan, options: Section) -> Self:
        """Build the vector."""
        return cls(cls.Options.model_validate(options.model_dump()).parameters)


@registry.register("tasks", "trivial")
class Trivial(Task):
    """Adds a number to every weight."""

    class Options(Section):
        """Whether all weights stay alike: pieces that are alike are sent once only, which flatters a deployment."""

        alike: bool = True

    def __init__(self, plan: Plan, options: BaseModel, site: Site) -> None:
        super().__init__(plan, options, site)
        self._alike = self.Options.model_validate(options.model_dump()).alike
        self._digest = hashlib.sha256(site.data.name.encode()).hexdigest()
        self._step = float(site.data.name.removeprefix("add:"))
        self._steps: torch.Tensor | None = None  # [weights], made once

    def summary(self) -> SiteSummary:
        """Count one example."""
        return SiteSummary(self.site.name, self.site.role, 1, 1, 1, "number", self._digest, f"adds {self._step:g}")

    def train(self, model: nn.Module, statistics: Statistics, instruction: TrainInstruction) -> TrainOutcome:
        """Add the number."""
        assert isinstance(model, Vector)
        with torch.no_grad():
            if self._alike:
                model.weights.add_(self._step)
            else:
                if self._steps is None:
                    self._steps = torch.linspace(self._step, self._step + 1, model.weights.numel())
                model.weights.add_(self._steps)
        return TrainOutcome(num_examples=1, metrics={"loss": 0.0})

    def evaluate(self, model: nn.Module, statistics: Statistics, *, with_baselines: bool) -> dict[str, float]:
        """Return 0 as the loss."""
        return {"loss": 0.0}
