"""A planet in front of its star: how much light it takes, minute by minute.

Circular orbits, quadratic limb darkening (Mandel and Agol 2002, ApJ 580, L171). The star's disc is cut into rings about
its centre and each ring's covered arc is summed up, as in Kreidberg (2015, PASP 127, 1161).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
SOLAR_DENSITY = 1409.8  # kg m-3, from the nominal values of IAU 2015 resolution B3
GRAVITATION = 6.6743e-11
DAY_S = 86400.0
RINGS = 24  # of the covered part: a transit is right to half a thousandth of its depth
MOMENTS = 7  # that an exposure is the mean of


@dataclass(frozen=True)
class Transit:
    """One planet's transits of one star."""

    period: float  # days
    epoch: float  # of one mid-transit, days
    ratio: float  # the planet's radius over the star's
    impact: float  # distance of the planet's path from the disc's centre, star's radii
    axis: float  # the orbit's radius over the star's
    limb: tuple[float, float]  # quadratic coefficients u1, u2

    @property
    def duration(self) -> float:
        """From first to last contact, days (Winn 2010, equation 14); 0: the planet passes by."""
        chord = (1 + self.ratio) ** 2 - self.impact**2
        inclined = np.sqrt(1 - (self.impact / self.axis) ** 2)
        return float(self.period / np.pi * np.arcsin(np.sqrt(max(chord, 0.0)) / self.axis / inclined))


def scaled_axis(period: float, density: float) -> float:
    """Return the orbit's radius over the star's by Kepler's third law.

    Args:
        period: days.
        density: of the star, in the Sun's.
    """
    third = GRAVITATION * SOLAR_DENSITY * density * (period * DAY_S) ** 2 / (3 * np.pi)
    return float(np.cbrt(third))


def central_duration(period: float, density: float) -> float:
    """Return how long a point takes to cross the disc's middle, days; arguments as of `scaled_axis`."""
    return period / np.pi / scaled_axis(period, density)


def phase(time: Float64, period: float, epoch: float) -> Float64:
    """Return [cadence] days since the nearest mid-transit, from -period/2 to period/2."""
    return np.asarray((time - epoch + period / 2) % period - period / 2)


def covered(distance: Float64, ratio: float, limb: tuple[float, float]) -> Float64:
    """Return [moment] the share of the star's light that a dark disc takes.

    Args:
        distance: [moment] from the star's centre to the disc's, star's radii.
        ratio: the disc's radius over the star's, below 1.
        limb: u1, u2 of I(μ) = 1 − u1 (1 − μ) − u2 (1 − μ)².
    """
    near = np.clip(np.abs(distance - ratio), 0.0, 1.0)[:, None]  # rings that are covered in part: from here …
    far = np.clip(distance + ratio, 0.0, 1.0)[:, None]  # … to here
    angle = (np.arange(RINGS) + 0.5) * np.pi / RINGS  # rings gather at both ends, where the arc is steep
    ring = (near + far) / 2 - (far - near) / 2 * np.cos(angle)
    weight = (far - near) / 2 * np.sin(angle) * np.pi / RINGS
    safe = np.maximum(distance[:, None], 1e-12)
    cosine = (ring**2 + safe**2 - ratio**2) / np.maximum(2 * ring * safe, 1e-12)
    arc = 2 * np.arccos(np.clip(cosine, -1.0, 1.0))
    partly = (arc * ring * _intensity(ring, limb) * weight).sum(axis=1)
    wholly = _within(np.clip(ratio - distance, 0.0, 1.0), limb)
    return np.asarray((partly + wholly) / _within(np.array([1.0]), limb))


def light_curve(time: Float64, transit: Transit, exposure: float) -> Float64:
    """Return [cadence] the star's flux, 1 out of transit: the mean over exposures (days) centred on `time` [days]."""
    flux = np.ones(len(time))
    since = phase(time, transit.period, transit.epoch)
    during = np.flatnonzero(np.abs(since) < transit.duration / 2 + exposure)
    moments = since[during, None] + exposure * ((np.arange(MOMENTS) + 0.5) / MOMENTS - 0.5)
    turned = 2 * np.pi * moments / transit.period
    distance = np.hypot(transit.axis * np.sin(turned), transit.impact * np.cos(turned))
    flux[during] -= covered(distance.ravel(), transit.ratio, transit.limb).reshape(distance.shape).mean(axis=1)
    return flux


def _intensity(radius: Float64, limb: tuple[float, float]) -> Float64:
    shade = 1 - np.sqrt(np.maximum(1 - radius**2, 0.0))
    return np.asarray(1 - limb[0] * shade - limb[1] * shade**2)


def _within(radius: Float64, limb: tuple[float, float]) -> Float64:
    """Return the light of the disc within a radius, in closed form; μ² = 1 − r²."""
    u1, u2 = limb
    mu = np.sqrt(1 - radius**2)
    total = (1 - u1 - u2) * (1 - mu**2) / 2 + (u1 + 2 * u2) * (1 - mu**3) / 3 - u2 * (1 - mu**4) / 4
    return np.asarray(2 * np.pi * total)
