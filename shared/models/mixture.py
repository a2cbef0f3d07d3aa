"""A differentiable choice between networks: all of them at once, mixed by weights that are trained with them.

Liu, Simonyan & Yang (2019), "DARTS: Differentiable architecture search", ICLR, equation 2 with one mixed operation, the
whole network, and its first-order approximation (section 2.3): network weights are trained while the mixing weights
stand still and the other way round, a batch each in turn. Both are in the model's state, so a federation averages both.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from astrofed.shared.models.base import Model, build_model
from astrofed.shared.models.signature import Input
from astrofed.shared.plan import Named, Plan, Section

MOST = 16


class Mixture(Model):
    """The mean of several networks' outputs, weighted by softmax of trained numbers; `nas` uses it to choose one."""

    class Options(Section):
        """`candidates`: the networks, each as a plan's [model] section would have it."""

        candidates: Annotated[tuple[dict[str, Any], ...], Field(min_length=2, max_length=MOST)]

    def __init__(self, networks: tuple[Model, ...]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.preferences = nn.Parameter(torch.zeros(len(networks)))
        self._turn = 0

    @classmethod
    def from_plan(cls, plan: Plan, options: Section) -> Self:
        """Build every candidate for the plan.

        Raises:
            PlanError: a candidate's options are wrong.
        """
        given = cls.Options.model_validate(options.model_dump())
        sections = [Named.model_validate(candidate) for candidate in given.candidates]
        return cls(tuple(build_model(plan.model_copy(update={"model": section})) for section in sections))

    def signature(self) -> tuple[Input, ...]:
        """Return what the candidates take."""
        first = self.networks[0]
        assert isinstance(first, Model)
        return first.signature()

    @property
    def shares(self) -> Tensor:
        """The weight of each candidate's output [candidate], summing to 1."""
        return torch.softmax(self.preferences, dim=0)

    def begin_round(self) -> None:
        """Make the next batch that is trained on the networks'."""
        self._turn = 0

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the mixed output of all candidates, of their shape."""
        of_shares = self.training and self._turn % 2 == 1
        self._turn += self.training
        with torch.set_grad_enabled(torch.is_grad_enabled() and not of_shares):
            outputs = [network(*inputs) for network in self.networks]
        shares = self.shares if of_shares else self.shares.detach()
        mixed: Tensor = sum(share * output for share, output in zip(shares, outputs, strict=True))
        return mixed


def shares_of(arrays: Mapping[str, Any]) -> list[float]:
    """Return the candidates' shares from a mixture's state."""
    preferences = torch.as_tensor(arrays["preferences"], dtype=torch.float64)
    return [float(share) for share in torch.softmax(preferences, dim=0)]
