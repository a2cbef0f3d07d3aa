"""Thermodynamics of a parcel: the gas law, the dry adiabat and the vapour that air can hold."""

import torch
from torch import Tensor

from astrofed.shared.physics.grid import Grid, step
from astrofed.shared.physics.hydrostatic import virtual_temperature
from astrofed.shared.planet import MOLAR_MASS_WATER, Planet

FREEZING = 273.15  # K


def ideal_gas_residual(rho: Tensor, ta: Tensor, hus: Tensor | None, ps: Tensor, grid: Grid) -> Tensor:
    """r = p / (ρ R Tv) − 1 [..., lev, lat, lon], dimensionless; for cubes whose density ρ (kg m-3) is its own field.

    ta (K) and hus (kg/kg, None: dry air) are [..., lev, lat, lon], ps (Pa) [..., lat, lon]; R is the planet's own.
    """
    pressure = grid.lev * ps.unsqueeze(-3)
    return pressure / (rho * grid.planet.gas_constant * virtual_temperature(ta, hus, grid.planet)) - 1


def static_stability_residual(ta: Tensor, grid: Grid) -> Tensor:
    """r = max(Δ ln T / (κ Δ ln p) − 1, 0) between neighbouring levels [..., lev − 1, lat, lon], dimensionless.

    κ = R / c_p. Where the potential temperature falls upwards r is by how much the lapse rate exceeds the dry
    adiabatic one, g / c_p in height; a stable layer has 0. ta (K) is [..., lev, lat, lon]; Δ ln p = Δ ln sigma.
    """
    planet = grid.planet
    kappa = planet.gas_constant / planet.heat_capacity_j_kg_k
    return (step(ta.log()) / (kappa * grid.log_step) - 1).clamp(min=0)


def saturation_pressure(ta: Tensor) -> Tensor:
    """Saturation vapour pressure e_s, Pa: over water after Bolton (1980, eq. 10), below 273.15 K over ice.

    The ice branch is the Magnus form of Alduchov & Eskridge (1996). Temperatures are held within 100 and 400 K.
    """
    celsius = ta.clamp(100.0, 400.0) - FREEZING
    warm, cold = celsius.clamp(min=0), celsius.clamp(max=0)  # each branch is finite where the other is taken
    water = 611.2 * torch.exp(17.67 * warm / (warm + 243.5))
    ice = 611.2 * torch.exp(22.587 * cold / (cold + 273.86))
    return torch.where(celsius >= 0, water, ice)


def vapour_pressure(hus: Tensor, pressure: Tensor, planet: Planet) -> Tensor:
    """e = q p / (ε + (1 − ε) q), Pa, with ε = M_water / M_dry (0.622 in Earth's air)."""
    ratio = MOLAR_MASS_WATER / planet.molar_mass_kg_mol
    return hus * pressure / (ratio + (1 - ratio) * hus)


def saturation_residual(ta: Tensor, hus: Tensor, ps: Tensor, grid: Grid) -> Tensor:
    """r = max(e / e_s − 1, 0) [..., lev, lat, lon], dimensionless: by how much the air is supersaturated.

    ta (K) and hus (kg/kg) are [..., lev, lat, lon], ps (Pa) [..., lat, lon].
    """
    vapour = vapour_pressure(hus, grid.lev * ps.unsqueeze(-3), grid.planet)
    return (vapour / saturation_pressure(ta) - 1).clamp(min=0)
