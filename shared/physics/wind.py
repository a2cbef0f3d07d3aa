"""Thermal wind: where Coriolis and pressure forces balance, the wind's shear follows from the temperature's gradient.

f ∂u/∂ ln p = R ∂Tv/∂y and f ∂v/∂ ln p = −R ∂Tv/∂x on pressure surfaces (Holton & Hakim 2013, section 3.4).
"""

import torch
from torch import Tensor

from astrofed.shared.physics.grid import Grid, mean, step
from astrofed.shared.physics.hydrostatic import virtual_temperature

TYPICAL_GRADIENT = 1e-5  # K m-1, 1 K per 100 km: mid-latitudes of an Earth-like world
ROSSBY_LIMIT = 0.1  # |vorticity / f| up to which the wind counts as geostrophic
EQUATOR_DEG = 20.0  # nearer the equator f is too small for the balance
FRICTION_SIGMA = 0.85  # nearer the ground turbulent friction is part of the balance


def thermal_wind_residual(ta: Tensor, hus: Tensor | None, ua: Tensor, va: Tensor, ps: Tensor, grid: Grid) -> Tensor:
    """r = (f ∂v/∂ ln p / R + k × ∇ₚTv) / (1 K per 100 km) between neighbouring levels, dimensionless.

    ta (K), hus (kg/kg, None: dry air), ua and va (m/s) are [..., lev, lat, lon], ps (Pa) [..., lat, lon]; the result is
    [2, ..., lev − 1, lat, lon], the balance of ua and that of va. On sigma levels ∇ₚT = ∇σT − ∂T/∂ ln p ∇ ln ps.
    """
    tv = virtual_temperature(ta, hus, grid.planet)
    log_ps = ps.log().unsqueeze(-3)
    lapse = step(tv) / grid.log_step
    north = mean(grid.northward(tv)) - lapse * grid.northward(log_ps)
    east = mean(grid.eastward(tv)) - lapse * grid.eastward(log_ps)
    turning = grid.coriolis / (grid.planet.gas_constant * grid.log_step)
    return torch.stack((turning * step(ua) - north, turning * step(va) + east)) / TYPICAL_GRADIENT


@torch.no_grad()
def geostrophic(ua: Tensor, va: Tensor, grid: Grid) -> Tensor:
    """Where thermal wind balance may be asked for: boolean [..., lev − 1, lat, lon] from ua, va [..., lev, lat, lon].

    Poleward of 20°, above the friction layer, and where the Rossby number |vorticity / f| is at most 0.1. Slowly
    rotating worlds have few such places.
    """
    vorticity = mean(grid.vorticity(ua, va))
    free = mean(grid.lev) <= FRICTION_SIGMA
    outside = grid.latitude.abs() >= EQUATOR_DEG * torch.pi / 180
    return (vorticity.abs() <= ROSSBY_LIMIT * grid.coriolis.abs()) & free & outside
