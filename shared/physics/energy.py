"""Energy at the top of the atmosphere: a world takes in what it gives off, but for what it stores."""

from torch import Tensor

from astrofed.shared.physics.grid import Grid


def energy_residual(rst: Tensor, rlut: Tensor, flux: Tensor, grid: Grid) -> Tensor:
    """r = N / (S / 4) [...], dimensionless: the global mean net flux over the mean sunlight.

    rst and rlut (W/m², positive downward, so rlut is negative) are [..., lat, lon]: their global means are
    S (1 − A) / 4 and −OLR, N is their sum; flux (W/m²) [...] is the stellar flux S. What columns and oceans store,
    C ∂T/∂t = N, does not close in one month's mean, so a single month's N is held against 0, with room in the tolerance
    for a season's storage on a nearly circular orbit. Where whole years are there, give their means.
    """
    return grid.global_mean(rst + rlut) / (flux / 4)
