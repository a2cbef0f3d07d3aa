"""Hydrostatic balance: the thickness of a layer follows from its temperature. Holton & Hakim (2013), section 1.4."""

from torch import Tensor

from astrofed.shared.physics.grid import Grid, mean, step
from astrofed.shared.planet import Planet


def virtual_temperature(ta: Tensor, hus: Tensor | None, planet: Planet) -> Tensor:
    """Tv = T (1 + (M_dry / M_water − 1) q), K, from ta (K) and hus (kg/kg) of one shape; None means dry air."""
    return ta if hus is None else ta * (1 + planet.virtual_temperature_factor * hus)


def hydrostatic_residual(zg: Tensor, ta: Tensor, hus: Tensor | None, grid: Grid) -> Tensor:
    """r = (ΔΦ + R T̄v Δ ln p) / (R T̄v) between neighbouring levels [..., lev − 1, lat, lon], dimensionless.

    Φ = g zg from zg (m), T̄v the mean of the two levels from ta (K) and hus (kg/kg, None: dry air), all [..., lev, lat,
    lon]; R and g are the planet's own. On sigma levels Δ ln p = Δ ln sigma.
    """
    heat = grid.planet.gas_constant * mean(virtual_temperature(ta, hus, grid.planet))
    return grid.planet.gravity_m_s2 * step(zg) / heat + grid.log_step
