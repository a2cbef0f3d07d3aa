"""Transit depth by wavelength, with a spread: a perceptron on waves in ln(wavelength), each averaged over the bin.

Waves let a small network follow narrow bands (Tancik et al. 2020, NeurIPS); their average over a bin takes away what
the bin is too wide to show (Barron et al. 2021, ICCV, do so for pixels). The head is Gaussian (Nix and Weigend 1994).
"""

import math
from typing import Annotated, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from astrofed.shared.models.base import Model
from astrofed.shared.models.signature import Axis, Input
from astrofed.shared.models.spectrum_layout import LONGEST, SHORTEST
from astrofed.shared.models.surrogate_net import LEAST_SPREAD
from astrofed.shared.plan import Plan, PlanError, Section
from astrofed.shared.registry import normalise

FIRST_SPREAD = -0.5  # before softplus: about half a width, before training


class BinShapeError(ValueError):
    """A tensor given to a spectrum network is no batch of bins."""


class SpectrumNet(Model):
    """Predicts a planet's transit depth in bins of wavelength, with its uncertainty."""

    last_layers: ClassVar[tuple[str, ...]] = ("head.",)

    class Options(Section):
        """Size of the network."""

        width: Annotated[int, Field(ge=4, le=4096)] = 64
        waves: Annotated[int, Field(ge=1, le=1024)] = 48
        """Sines and cosines; the n-th has n half periods between the shortest and the longest wavelength."""

    def __init__(self, *, width: int = 64, waves: int = 48) -> None:
        super().__init__()
        steps = torch.arange(1, waves + 1) * (math.pi / math.log(LONGEST / SHORTEST))
        self.register_buffer("steps", steps, persistent=False)
        self.body = nn.Sequential(nn.Linear(2 * waves, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.head = nn.Linear(width, 2)
        nn.init.normal_(self.head.weight, std=0.1 / width**0.5)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([0.0, FIRST_SPREAD]))

    @classmethod
    def from_plan(cls, plan: Plan, options: Section) -> Self:
        """Build the network (PlanError: the plan's task has no spectrum)."""
        if normalise(plan.task.name) != "spectrum":
            raise PlanError(f"model 'spectrum-net' is for the task 'spectrum'; the plan's is {plan.task.name!r}")
        given = cls.Options.model_validate(options.model_dump())
        return cls(width=given.width, waves=given.waves)

    def signature(self) -> tuple[Input, ...]:
        """Return the bins."""
        return (Input("bins", (Axis("batch", 32), 2)),)

    def forward(self, bins: Tensor) -> Tensor:
        """Return [batch, 2]: mean and standard deviation of the bin's depth, in the depth's widths.

        Args:
            bins: [batch, edge] ln of the wavelengths in um at which a bin begins and ends.

        Raises:
            BinShapeError: the shape is another.
        """
        if bins.ndim != 2 or bins.shape[1] != 2:
            raise BinShapeError(f"bins are {list(bins.shape)}; expected [batch, 2]")
        steps = self.get_buffer("steps")
        angle = steps * (bins.mean(dim=1, keepdim=True) - math.log(SHORTEST))
        height = torch.sinc(steps * (bins[:, 1:] - bins[:, :1]) / math.tau)  # of a wave's average over the bin
        out = self.head(self.body(torch.cat((height * angle.sin(), height * angle.cos()), dim=1)))
        return torch.stack((out[:, 0], LEAST_SPREAD + F.softplus(out[:, 1])), dim=1)
