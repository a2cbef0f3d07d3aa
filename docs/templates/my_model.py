"""A model of your own for tables of numbers. Test it in a plan that names it, see docs/plugins.md."""

from typing import Annotated, Self

from pydantic import Field
from torch import Tensor, nn

from astrofed.shared.models.base import Model
from astrofed.shared.models.planet_layout import FEATURES, TARGETS
from astrofed.shared.plan import Plan, Section


class Residual(Model):
    """Predicts numbers from a row of numbers by blocks that add to what goes through them."""

    class Options(Section):
        """Size of the network."""

        width: Annotated[int, Field(ge=1, le=4096)] = 32
        blocks: Annotated[int, Field(ge=1, le=64)] = 2

    def __init__(self, inputs: int, outputs: int, width: int, blocks: int) -> None:
        super().__init__()
        self.into = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU()) for _ in range(blocks)
        )
        self.out = nn.Linear(width, outputs)

    @classmethod
    def from_plan(cls, plan: Plan, options: Section) -> Self:
        """Build the network; its shapes follow from the plan alone, so that server and sites make the same one."""
        given = cls.Options.model_validate(options.model_dump())
        return cls(FEATURES, len(TARGETS), given.width, given.blocks)

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows [batch, feature] to predictions [batch, output], both dimensionless."""
        hidden = self.into(rows)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        out: Tensor = self.out(hidden)
        return out
