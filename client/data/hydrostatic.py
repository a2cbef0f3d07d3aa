"""Geopotential height by hydrostatic integration on sigma levels, with the world's own gravity and gas constant."""

import numpy as np
from numpy.typing import NDArray

from astrofed.shared.planet import Planet

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


def virtual_temperature(ta: NDArray[np.floating], hus: NDArray[np.floating] | None, planet: Planet) -> Float64:
    """Return Tv = T (1 + (M_dry / M_water − 1) q), K, of the shape of `ta` (K); `hus` in kg/kg, None for dry air."""
    temperature = ta.astype(np.float64)
    return temperature if hus is None else temperature * (1 + planet.virtual_temperature_factor * hus)


def geopotential(
    ta: NDArray[np.floating], hus: NDArray[np.floating] | None, phis: NDArray[np.floating], lev: Float64, planet: Planet
) -> Float64:
    """Return Φ [..., lev, lat, lon], m2 s-2, from ta (K), hus (kg/kg) of that shape and phis [..., lat, lon] (m2 s-2).

    dΦ = −R Tv d ln p between neighbouring full levels, with the mean Tv of the two; from the surface (sigma = 1) to the
    lowest level with that level's Tv. On sigma levels Δ ln p = Δ ln sigma, so surface pressure cancels. Holton & Hakim
    (2013), section 1.4.1. `lev` [lev] (sigma) may rise or fall.
    """
    downward = lev[-1] > lev[0]
    order = slice(None, None, -1 if downward else 1)  # from the surface up
    tv = virtual_temperature(ta, hus, planet)[..., order, :, :]
    log_sigma = np.log(lev[order])[:, None, None]
    steps = np.empty_like(tv)
    steps[..., 0, :, :] = -tv[..., 0, :, :] * log_sigma[0]
    steps[..., 1:, :, :] = 0.5 * (tv[..., 1:, :, :] + tv[..., :-1, :, :]) * -np.diff(log_sigma, axis=0)
    upward = planet.gas_constant * np.cumsum(steps, axis=-3) + phis.astype(np.float64)[..., None, :, :]
    return np.ascontiguousarray(upward[..., order, :, :])


def geopotential_height(
    ta: NDArray[np.floating], hus: NDArray[np.floating] | None, phis: NDArray[np.floating], lev: Float64, planet: Planet
) -> Float32:
    """Return zg = Φ / g [..., lev, lat, lon], m; arguments as in `geopotential`."""
    return (geopotential(ta, hus, phis, lev, planet) / planet.gravity_m_s2).astype(np.float32)
