"""A multilayer perceptron beside a linear map, for tables: small, smooth, and without layers that see other rows."""

from typing import Annotated, ClassVar, Self

from pydantic import Field
from torch import Tensor, nn

from astrofed.shared.models.base import Model
from astrofed.shared.models.planet_layout import FEATURES, TARGETS
from astrofed.shared.models.signature import Axis, Input
from astrofed.shared.plan import Plan, PlanError, Section
from astrofed.shared.registry import normalise

Size = Annotated[int, Field(ge=1, le=4096)]


class RowShapeError(ValueError):
    """A tensor given to a perceptron has not the number of features it was built for."""


class MLP(Model):
    """Predicts numbers from a row of numbers; a perceptron plus a linear map, both near zero before training."""

    last_layers: ClassVar[tuple[str, ...]] = ("head.", "linear.")

    class Options(Section):
        """Size of the network."""

        hidden: Annotated[tuple[Size, ...], Field(min_length=1, max_length=16)] = (64,)
        inputs: Size | None = None
        """Features of a row; the task "planets" says it by itself."""
        outputs: Size | None = None
        """Numbers that are predicted; the task "planets" says it by itself."""

    def __init__(self, inputs: int, outputs: int, *, hidden: tuple[int, ...] = (64,)) -> None:
        super().__init__()
        self.inputs = inputs
        layers: list[nn.Module] = []
        for width_in, width in zip((inputs, *hidden), hidden, strict=False):
            layers += [nn.Linear(width_in, width), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(hidden[-1], outputs)
        self.linear = nn.Linear(inputs, outputs, bias=False)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.head.bias)
        nn.init.normal_(self.head.weight, std=0.1 / hidden[-1] ** 0.5)

    @classmethod
    def from_plan(cls, plan: Plan, options: Section) -> Self:
        """Build the perceptron; sizes that the options leave out are those of the plan's task.

        Raises:
            PlanError: the task is not "planets" and a size is missing.
        """
        given = cls.Options.model_validate(options.model_dump())
        inputs, outputs = given.inputs, given.outputs
        if normalise(plan.task.name) == "planets":
            inputs, outputs = inputs or FEATURES, outputs or len(TARGETS)
        if inputs is None or outputs is None:
            raise PlanError(f"model.inputs and model.outputs: the task {plan.task.name!r} doesn't say them; give both")
        return cls(inputs, outputs, hidden=given.hidden)

    def signature(self) -> tuple[Input, ...]:
        """Return the rows."""
        return (Input("rows", (Axis("batch", 32), self.inputs)),)

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows [batch, feature] to predictions [batch, output], both dimensionless.

        Raises:
            RowShapeError: the shape is another.
        """
        if rows.ndim != 2 or rows.shape[1] != self.inputs:
            raise RowShapeError(f"rows are {list(rows.shape)}; expected [batch, feature] with {self.inputs} features")
        out: Tensor = self.linear(rows) + self.head(self.body(rows))
        return out
