"""Conservation of mass: what flows together must sink or rise, and the atmosphere's dry mass stays what it is.

Continuity in pressure coordinates, ∇ₚ·v + ∂ω/∂p = 0 (Holton & Hakim 2013, eq. 3.5), for fields on sigma levels.
"""

from torch import Tensor

from astrofed.shared.physics.grid import Grid, mean, step

TYPICAL_DIVERGENCE = 1e-5  # s-1, of synoptic weather


def mass_continuity_residual(ua: Tensor, va: Tensor, wap: Tensor, ps: Tensor, grid: Grid) -> Tensor:
    """r = (∇ₚ·v + ∂ω/∂p) / 1e-5 s⁻¹ between neighbouring levels [..., lev − 1, lat, lon], dimensionless.

    ua, va (m/s) and wap = ω (Pa/s) are [..., lev, lat, lon], ps (Pa) [..., lat, lon]. Pressure surfaces cut through
    sigma levels where ps varies: ∇ₚ·v = ∇σ·v − ∂v/∂ ln p · ∇ ln ps.
    """
    log_ps = ps.log().unsqueeze(-3)
    across = step(ua) * grid.eastward(log_ps) + step(va) * grid.northward(log_ps)
    horizontal = mean(grid.divergence(ua, va)) - across / grid.log_step
    vertical = step(wap) / (step(grid.lev) * ps.unsqueeze(-3))
    return (horizontal + vertical) / TYPICAL_DIVERGENCE


def column_continuity_residual(ua: Tensor, va: Tensor, ps: Tensor, grid: Grid) -> Tensor:
    """r = (∇·∫v dp) / ps / 1e-5 s⁻¹ of whole columns [..., lat, lon], dimensionless: continuity without ω.

    ua, va (m/s) [..., lev, lat, lon], ps (Pa) [..., lat, lon]. The tendency of ps that balances it is left out: in
    monthly means it is below 1e-3 here (a change of 10 hPa from month to month is 4e-4).
    """
    weights = grid.thickness * ps.unsqueeze(-3)
    return grid.divergence((ua * weights).sum(-3), (va * weights).sum(-3)) / ps / TYPICAL_DIVERGENCE


def dry_mass(ps: Tensor, hus: Tensor, grid: Grid) -> Tensor:
    """Global mean of the dry air's surface pressure [...], Pa: ps less the weight of the column's water vapour.

    ps (Pa) [..., lat, lon], hus (kg/kg) [..., lev, lat, lon].
    """
    return grid.global_mean(ps * (1 - (hus * grid.thickness).sum(-3)))


def dry_mass_residual(ps: Tensor, hus: Tensor, known: Tensor, grid: Grid) -> Tensor:
    """r = dry mass / known dry mass − 1 [...], dimensionless; `known` (Pa) [...] is the world's at another time."""
    return dry_mass(ps, hus, grid) / known - 1
