"""Geological time: rates per year between slices as irregular as they are, and a star that brightens.

No cube has volcanic outgassing or weathering as fields, and the shipped worlds' geological times are nominal, so these
are no constraints of the task: they are for histories, of planets and of their carbon.
"""

import torch
from torch import Tensor

SUN_AGE_GYR = 4.57
FORCING = 5.35  # W m-2 for e times the carbon dioxide, Myhre et al. (1998)


def gough_luminosity(age_gyr: Tensor) -> Tensor:
    """Return the Sun's luminosity over today's, at an age since formation in Gyr: 1 / (1 + 0.4 (1 − t / 4.57)).

    Gough (1981, Solar Physics 74, 21): 0.714 at formation, 1 today.
    """
    return 1 / (1 + 0.4 * (1 - age_gyr / SUN_AGE_GYR))


def stellar_flux_residual(flux: Tensor, age_gyr: Tensor, flux_today: Tensor) -> Tensor:
    """r = S(t) / (S₀ L(t)) − 1 [..., time], dimensionless, for a planet of the Sun whose orbit doesn't change.

    flux (W/m²) at ages since formation (Gyr), both [..., time]; flux_today (W/m²) [...] is S₀.
    """
    return flux / (flux_today[..., None] * gough_luminosity(age_gyr)) - 1


def carbon_dioxide_forcing(pco2: Tensor, reference: Tensor) -> Tensor:
    """Return the radiative forcing 5.35 ln(C / C₀), W/m², of a partial pressure against a reference, both Pa."""
    return FORCING * torch.log(pco2 / reference)


def carbon_residual(
    pco2: Tensor, outgassing: Tensor, weathering: Tensor, years: Tensor, jumps: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """r = (ΔC/Δt − (V − W)) / V between slices [..., time − 1], dimensionless, and which of them count.

    pco2 (Pa), outgassing V and weathering W (Pa per year, as means over the interval from a slice to the next) are
    [..., time], [..., time − 1] and [..., time − 1]; years [..., time] rises or falls and need not be even. Intervals
    in `jumps` (boolean [..., time − 1]: the great oxidation, a snowball's end) don't count.
    """
    rate = pco2.diff(dim=-1) / years.diff(dim=-1)
    values = (rate - (outgassing - weathering)) / outgassing
    counted = torch.ones_like(values, dtype=torch.bool) if jumps is None else ~jumps.expand_as(values)
    return values, counted
