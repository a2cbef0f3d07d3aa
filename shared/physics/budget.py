"""Budgets from one month to the next: what the atmosphere gains is what flowed in.

A month's mean stands for its middle, so what changed between two months is held against the mean of their fluxes times
the month's length (the trapezoidal rule). Fluxes are positive downward: into the atmosphere at the top, out of it at
the surface. Trenberth (1991, J. Climate 4, 707) gives the column budgets; both residuals are global.
"""

from collections.abc import Mapping

from torch import Tensor

from astrofed.shared.physics.grid import Grid

MONTH_S = 30 * 86400.0  # a twelfth of a GCM's year of 360 days; the shipped worlds' budgets close with it
LATENT_HEAT = 2.501e6  # J kg-1, of vaporisation at 273.15 K
WATER_FIELDS = ("hus", "ps", "pr", "evap")
ENERGY_FIELDS = ("ta", "hus", "ua", "va", "ps", "phis", "rst", "rlut", "rss", "rls", "hfss", "hfls")


def water_path(ps: Tensor, hus: Tensor, grid: Grid) -> Tensor:
    """Global mean of the column's vapour ∫ q dp / g [...], kg m-2, from ps (Pa) and hus (kg/kg)."""
    return grid.global_mean(ps * (hus * grid.thickness).sum(-3)) / grid.planet.gravity_m_s2


def water_gain(fields: Mapping[str, Tensor], grid: Grid) -> Tensor:
    """Global mean of what the surface gives the air, evaporation less precipitation [...], kg m-2 s-1."""
    return -grid.global_mean(fields["pr"] + fields["evap"])


def water_residual(fields: Mapping[str, Tensor], before: Mapping[str, Tensor], interval_s: float, grid: Grid) -> Tensor:
    """r = (ΔW / Δt − (E − P)) / P [...], dimensionless, between two months with WATER_FIELDS.

    W is the vapour's path, E − P the mean of both months, the scale P the earlier month's precipitation.
    """
    change = (_path(fields, grid) - _path(before, grid)) / interval_s
    flow = 0.5 * (water_gain(fields, grid) + water_gain(before, grid))
    return (change - flow) / grid.global_mean(before["pr"])


def column_energy(fields: Mapping[str, Tensor], grid: Grid) -> Tensor:
    """Global mean of the column's energy ∫ (c_p T + L q + (u² + v²)/2) dp/g + Φ_s ps/g [...], J m-2.

    ∫ (c_p T + Φ_s) dp/g is internal plus potential energy of a hydrostatic column (Trenberth 1991).
    """
    planet = grid.planet
    layers = planet.heat_capacity_j_kg_k * fields["ta"] + LATENT_HEAT * fields["hus"]
    layers = layers + 0.5 * (fields["ua"].square() + fields["va"].square())
    column = (layers * grid.thickness).sum(-3) + fields["phis"]
    return grid.global_mean(column * fields["ps"]) / planet.gravity_m_s2


def energy_gain(fields: Mapping[str, Tensor], grid: Grid) -> Tensor:
    """Global mean of what flows into the atmosphere at the top less what leaves it at the surface [...], W m-2."""
    surface = fields["rss"] + fields["rls"] + fields["hfss"] + fields["hfls"]
    return grid.global_mean(fields["rst"] + fields["rlut"] - surface)


def energy_budget_residual(
    fields: Mapping[str, Tensor], before: Mapping[str, Tensor], interval_s: float, flux: Tensor, grid: Grid
) -> Tensor:
    """r = (ΔE / Δt − N) / (S / 4) [...], dimensionless, between two months with ENERGY_FIELDS.

    C ∂T/∂t = N for the atmosphere: E is the column's energy, N the mean of both months' gain, S (W/m²) the star's flux.
    """
    change = (column_energy(fields, grid) - column_energy(before, grid)) / interval_s
    gain = 0.5 * (energy_gain(fields, grid) + energy_gain(before, grid))
    return (change - gain) / (flux / 4)


def _path(fields: Mapping[str, Tensor], grid: Grid) -> Tensor:
    return water_path(fields["ps"], fields["hus"], grid)
