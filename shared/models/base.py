"""The base of all models: built from a plan alone, so that server and sites make the same one."""

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from torch import nn

from astrofed.shared import registry
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.signature import Input
from astrofed.shared.plan import Plan, Section, check_options
from astrofed.shared.seeds import derive_seed, torch_seeded


class NoSignature(UserMistake):
    """A network that doesn't say what its forward takes, so that nothing can be given to it unseen."""


class Model(nn.Module, ABC):
    """A network that a plan names. Its shapes follow from the plan; it knows no data."""

    last_layers: ClassVar[tuple[str, ...]] = ()
    """Names, or their beginnings, of the last layers' parameters: what algorithms adapt that leave the features."""

    class Options(Section):
        """The model's own keys in the plan's [model] section."""

    can_checkpoint: ClassVar[bool] = False
    """Whether forward recomputes activations in the backward pass while `checkpointing` is set."""
    checkpointing: bool = False

    @classmethod
    @abstractmethod
    def from_plan(cls, plan: Plan, options: Section) -> Self:
        """Build the network for a plan; weights are drawn from torch's current generator, which the caller seeds."""

    def begin_round(self) -> None:
        """Forget what another participant's training may have left in attributes; called before each local round."""

    def signature(self) -> tuple[Input, ...]:
        """Return what forward takes, in the order of its arguments; `astrofed export` needs it.

        Raises:
            NoSignature: the class doesn't say.
        """
        raise NoSignature(
            f"{type(self).__name__} doesn't say what its forward takes; give it a method `signature` "
            "(astrofed.shared.models.signature shows how)"
        )


def build_model(plan: Plan) -> Model:
    """Build the plan's model with weights drawn from the plan's seed; torch's global generator is left as it was."""
    cls: type[Model] = registry.get("models", plan.model.name)
    options = check_options(cls.Options, plan.model, "model")
    with torch_seeded(derive_seed(plan.seed, "model")):
        return cls.from_plan(plan, options)
