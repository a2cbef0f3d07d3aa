"""The state of a world over geological time: its quantities, their scales and how they may change.

Scales are public constants, so that no site has to tell its own. Signs say in which direction a quantity goes in every
history that ships (radiogenic power decays, the interior cools, water escapes and leaves oxygen,
a star of this mass fades while it contracts); 0: in either.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Quantity:
    """One quantity of the state; dimensionless is (x − middle) / scale, or ln(x / middle) / scale."""

    name: str
    unit: str
    middle: float
    scale: float
    logarithmic: bool = False
    sign: int = 0  # of its change
    positive: bool = False  # of one that is not logarithmic: it never falls below zero

    @property
    def floor(self) -> float:
        """The lowest dimensionless value."""
        return -self.middle / self.scale if self.positive else -math.inf


QUANTITIES = (
    Quantity("mantle_temperature", "K", 2400.0, 100.0, sign=-1),
    Quantity("core_temperature", "K", 5500.0, 300.0, sign=-1),
    Quantity("mantle_radiogenic_power", "TW", 30.0, 0.5, logarithmic=True, sign=-1),
    Quantity("core_radiogenic_power", "TW", 10.0, 0.7, logarithmic=True, sign=-1),
    Quantity("mantle_heat_flow", "TW", 60.0, 0.5, logarithmic=True, sign=-1),
    Quantity("core_heat_flow", "TW", 25.0, 0.4, logarithmic=True, sign=-1),
    Quantity("secular_heat_flow", "TW", 8.0, 0.5, logarithmic=True),
    Quantity("surface_water", "TO", 5.0, 3.0, sign=-1, positive=True),
    Quantity("oxygen", "bar", 600.0, 400.0, sign=1, positive=True),
    Quantity("luminosity", "L_sun", 1e-3, 0.5, logarithmic=True, sign=-1),
    Quantity("xuv_luminosity", "L_sun", 1e-6, 0.5, logarithmic=True, sign=-1),
    Quantity("star_temperature", "K", 2800.0, 100.0),
)
NAMES = tuple(quantity.name for quantity in QUANTITIES)


def scaled(values: Tensor) -> Tensor:
    """Return states [..., quantity] without dimension, in double precision as they came."""
    columns = [
        torch.log(column / q.middle) / q.scale if q.logarithmic else (column - q.middle) / q.scale
        for q, column in zip(QUANTITIES, values.unbind(-1), strict=True)
    ]
    return torch.stack(columns, dim=-1)


def unscaled(states: Tensor) -> Tensor:
    """Return dimensionless states [..., quantity] in their own units."""
    columns = [
        q.middle * torch.exp(column * q.scale) if q.logarithmic else q.middle + column * q.scale
        for q, column in zip(QUANTITIES, states.unbind(-1), strict=True)
    ]
    return torch.stack(columns, dim=-1)
