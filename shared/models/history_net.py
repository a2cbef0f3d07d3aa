"""The next state of a world from its last two: extrapolation, corrected by a small residual network.

Changes go on as powers of the world's age, whose exponents are learned for each quantity and corrected by the state: a
constant rate is the power 0, with which training begins, and the logarithm of a power law of time has the power 1. With
`monotone` no quantity can go against its sign, so those constraints hold by construction, in roll-outs of any length.
"""

from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from astrofed.shared.models.base import Model
from astrofed.shared.models.history_layout import QUANTITIES
from astrofed.shared.models.signature import Axis, Input
from astrofed.shared.plan import Plan, PlanError, Section
from astrofed.shared.registry import normalise

COUNT = len(QUANTITIES)
CHANGES = 10.0  # changes of a step are small beside states of size 1
POWERS, LARGEST = 10.0, 5.0  # exponents move fast, and stay where they mean something
FARTHEST = 30.0  # no state that a world can be in lies beyond; roll-outs stay finite


class HistoryNet(Model):
    """Steps a world's state through geological time."""

    last_layers: ClassVar[tuple[str, ...]] = ("head.",)

    class Options(Section):
        """Size of the network, and whether quantities may only change in their directions."""

        width: Annotated[int, Field(ge=1, le=4096)] = 48
        monotone: bool = True

    def __init__(self, width: int, *, monotone: bool = True) -> None:
        super().__init__()
        self.monotone = monotone
        self.body = nn.Sequential(nn.Linear(3 * COUNT + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.power = nn.Parameter(torch.zeros(COUNT))
        self.head = nn.Linear(width, 2 * COUNT)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("sign", torch.tensor([float(q.sign) for q in QUANTITIES]), persistent=False)
        self.register_buffer("floor", torch.tensor([q.floor for q in QUANTITIES]), persistent=False)

    @classmethod
    def from_plan(cls, plan: Plan, options: Section) -> Self:
        """Build the network (PlanError: the plan's task has no histories)."""
        if normalise(plan.task.name) != normalise("deep-time"):
            raise PlanError(f"model 'history-net' is for the task 'deep-time'; the plan's is {plan.task.name!r}")
        given = cls.Options.model_validate(options.model_dump())
        return cls(given.width, monotone=given.monotone)

    def signature(self) -> tuple[Input, ...]:
        """Return two states, which quantities they have, and how much the world ages."""
        batch = Axis("batch", 8)
        return Input("states", (batch, 2, COUNT)), Input("given", (batch, COUNT)), Input("ageing", (batch, 1))

    def forward(self, states: Tensor, given: Tensor, ageing: Tensor) -> Tensor:
        """Return the next state.

        Args:
            states: [batch, 2, quantity] the state before the last and the last, dimensionless.
            given: [batch, quantity] 1 for a quantity that the world has, else 0.
            ageing: [batch, 1] ln of the ratio of the ages at the next state and at the last.

        Returns:
            [batch, quantity] dimensionless; 0 where not given.
        """
        last = states[:, 1] * given
        change = last - states[:, 0] * given
        features = torch.cat([last, CHANGES * change, given, ageing], dim=1)
        more, shift = self.head(self.body(features)).chunk(2, dim=1)
        power = (POWERS * self.power + more).clamp(-LARGEST, LARGEST)
        change = change * torch.exp(-power * ageing) + ageing * shift / CHANGES
        sign, floor = self.get_buffer("sign"), self.get_buffer("floor")
        if self.monotone:
            change = torch.where(sign == 0, change, sign * torch.relu(sign * change))
        return torch.maximum(last + change, floor).clamp(-FARTHEST, FARTHEST) * given
