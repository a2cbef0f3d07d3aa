"""Radius ratio and duration of a transit from its folded light curve: what a box says, corrected, with a spread.

Tokens of the light curve and of the scalars by the surrogate's encoders, a query for each target that attends to them
(Jaegle et al. 2022), a Gaussian head (Nix and Weigend 1994). Before training the mean is the box's.
"""

import math
from typing import Annotated, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from astrofed.shared.models.base import Model
from astrofed.shared.models.signature import Axis, Input
from astrofed.shared.models.surrogate_encoders import ScalarEncoder, SeriesEncoder
from astrofed.shared.models.surrogate_net import LEAST_SPREAD, CrossBlock
from astrofed.shared.models.transit_layout import BINS, CHANNELS, SCALARS, TARGETS
from astrofed.shared.plan import Plan, PlanError, Section
from astrofed.shared.registry import normalise


class TransitShapeError(ValueError):
    """A tensor given to a transit network has not the shape of the layout."""


class TransitNet(Model):
    """Predicts a transit's radius ratio and duration, with their uncertainty, from its folded light curve."""

    last_layers: ClassVar[tuple[str, ...]] = ("head", "bias")

    class Options(Section):
        """Size of the network."""

        width: Annotated[int, Field(ge=8, le=1024)] = 32
        heads: Annotated[int, Field(ge=1, le=32)] = 4
        depth: Annotated[int, Field(ge=1, le=12)] = 2
        """Blocks of cross-attention."""

    def __init__(self, *, width: int = 32, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.series = SeriesEncoder(len(CHANNELS), BINS, width)
        self.scalars = ScalarEncoder(len(SCALARS), width)
        self.queries = nn.Parameter(torch.randn(len(TARGETS), width) * 0.3)
        self.blocks = nn.ModuleList(CrossBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Parameter(torch.randn(len(TARGETS), width, 2) * 0.01 / math.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(len(TARGETS), 2))

    @classmethod
    def from_plan(cls, plan: Plan, options: Section) -> Self:
        """Build the network.

        Raises:
            PlanError: the plan's task has no transits, or width is no multiple of heads.
        """
        if normalise(plan.task.name) != "transits":
            raise PlanError(f"model 'transit-net' is for the task 'transits'; the plan's is {plan.task.name!r}")
        given = cls.Options.model_validate(options.model_dump())
        if given.width % given.heads:
            raise PlanError(f"model.width: {given.width} must be a multiple of model.heads, {given.heads}")
        return cls(width=given.width, heads=given.heads, depth=given.depth)

    def signature(self) -> tuple[Input, ...]:
        """Return folded light curves and their scalars."""
        batch = Axis("batch", 32)
        return Input("series", (batch, len(CHANNELS), BINS)), Input("scalars", (batch, len(SCALARS)))

    def forward(self, series: Tensor, scalars: Tensor) -> Tensor:
        """Return [batch, target, 2]: mean and standard deviation in the targets' widths.

        Args:
            series: [batch, channel, bin] of `FoldedTransits`.
            scalars: [batch, scalar] of the same.

        Raises:
            TransitShapeError: a shape is another.
        """
        for name, tensor, shape in (("series", series, (len(CHANNELS), BINS)), ("scalars", scalars, (len(SCALARS),))):
            if tuple(tensor.shape[1:]) != shape:
                raise TransitShapeError(
                    f"{name} is {list(tensor.shape)}; expected [batch, {', '.join(map(str, shape))}]"
                )
        context = torch.cat((self.series(series), self.scalars(scalars)), dim=1)
        mask = torch.ones_like(context[..., 0], dtype=torch.bool)
        x = self.queries + torch.zeros_like(context[:, :1])
        for block in self.blocks:
            x = block(x, context, mask)
        out = torch.einsum("btw,two->bto", self.norm(x), self.head) + self.bias
        mean = out[..., 0] + scalars[:, : len(TARGETS)]
        return torch.stack((mean, LEAST_SPREAD + F.softplus(out[..., 1])), dim=-1)
