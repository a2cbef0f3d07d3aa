"""The base of all models: built from a plan alone, so that server and sites make the same one."""

from abc import ABC, abstractmethod
from typing import Self

from torch import nn

from astrofed.shared import registry
from astrofed.shared.plan import Plan, Section, check_options
from astrofed.shared.seeds import derive_seed, torch_seeded


class Model(nn.Module, ABC):
    """A network that a plan names. Its shapes follow from the plan; it knows no data."""

    class Options(Section):
        """The model's own keys in the plan's [model] section."""

    @classmethod
    @abstractmethod
    def from_plan(cls, plan: Plan, options: Section) -> Self:
        """Build the network for a plan; weights are drawn from torch's current generator, which the caller seeds."""


def build_model(plan: Plan) -> Model:
    """Build the plan's model with weights drawn from the plan's seed; torch's global generator is left as it was."""
    cls: type[Model] = registry.get("models", plan.model.name)
    options = check_options(cls.Options, plan.model, "model")
    with torch_seeded(derive_seed(plan.seed, "model")):
        return cls.from_plan(plan, options)
