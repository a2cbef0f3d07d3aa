"""How a unit's gradient is bounded before it is added to the others', and how much noise hides what is left of it.

However it is done, one unit moves the sum by at most `norm`, and a step costs what one Gaussian mechanism costs whose
noise is the event's `noise_multiplier` times that.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from astrofed.shared.plan import Privacy
from astrofed.shared.privacy.noise import Randomness
from astrofed.shared.privacy.quantile import QuantileNorm

_ROUNDING = 1e-5  # float32 norms are off by less than this share: clipping to a little less keeps the bound itself
_LONGEST = 1e20  # clipping norms; longer gradients, which only broken data have, count nothing


class Flat:
    """All of a unit's gradient together is at most `norm` long (Abadi et al. 2016)."""

    def __init__(self, norm: float) -> None:
        self.norm = norm

    def factors(self, squares: Tensor) -> Tensor:
        """Return what to multiply gradients with [unit, parameter], given their squared lengths [unit, parameter].

        A unit whose length is not a number gets 0.
        """
        return _shrink(squares.sum(dim=1, keepdim=True).sqrt(), self.norm).expand_as(squares)

    def noise_multiplier(self, of_step: float, expected: float) -> float:
        """Return the noise on the sum in clipping norms, where a step's noise multiplier is to be `of_step`.

        `expected`: units that a step draws on average.
        """
        return of_step

    def end_step(self, of_step: float, expected: float, random: Randomness) -> None:
        """Take note that a step was taken."""


class PerLayer(Flat):
    """Each of L layers' gradients is at most `norm` / √L long, so all together are at most `norm` long."""

    def __init__(self, norm: float, layers: Sequence[str]) -> None:
        """`layers`: the name of the layer that each parameter belongs to."""
        super().__init__(norm)
        names = sorted(set(layers))
        self._member = torch.tensor([[float(layer == name) for name in names] for layer in layers])

    def factors(self, squares: Tensor) -> Tensor:
        """See `Flat`; a layer that counts nothing takes its unit's other layers with it."""
        member = self._member.to(squares)
        lengths = torch.stack([squares[:, column].sum(dim=1) for column in member.T.bool()], dim=1).sqrt()
        factors = _shrink(lengths, self.norm / math.sqrt(member.shape[1]))
        return torch.where((factors > 0).all(dim=1, keepdim=True), factors, 0.0) @ member.T


class Adaptive(QuantileNorm, Flat):
    """As `Flat`, with a norm that follows a quantile of the units' gradients, at a cost that is accounted."""

    def factors(self, squares: Tensor) -> Tensor:
        """See `Flat`; also counts."""
        factors = super().factors(squares)
        self.count(int((factors[:, 0] == 1).sum()), len(factors))
        return factors


def make_clipping(privacy: Privacy, model: nn.Module) -> Flat:
    """Return the clipping that a plan asks for."""
    if privacy.clipping == "per-layer":
        named = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        return PerLayer(privacy.clipping_norm, [name.rpartition(".")[0] for name in named])
    if privacy.clipping == "adaptive":
        return Adaptive(privacy.clipping_norm, privacy.clipping_quantile)
    return Flat(privacy.clipping_norm)


def _shrink(lengths: Tensor, norm: float) -> Tensor:
    """0 where a length is not finite, or so large that float32 has no exact factor for it."""
    factors = (norm * (1 - _ROUNDING) / lengths).clamp(max=1.0)
    return torch.where(lengths < norm * _LONGEST, factors, 0.0)
