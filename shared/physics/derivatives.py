"""Derivatives on the sphere as matrices: trigonometric along parallels, by long polynomials along meridians.

A spectral model's fields hold waves of down to three cells, of which second-order differences see half the slope.
Trigonometric interpolation is exact for them (Trefethen 2000, Spectral Methods in MATLAB, chapter 3); polynomials
through seven points are of sixth order. A meridian goes on beyond the poles, down the other side of the globe.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
REACH = 3  # points on either side of the one whose derivative is taken
AT_POLE = 1e-6  # radians


def around(count: int, direction: float) -> Float64:
    """Return ∂/∂λ [lon, lon], to be multiplied from the right; `direction` is −1 where longitudes fall."""
    return _by_wave(count, lambda wave: 1j * direction * wave)


def half_turn(count: int) -> Float64:
    """Return the matrix [lon, lon] that gives, from the right, the field half a turn away."""
    return _by_wave(count, lambda wave: (-1.0) ** wave)


def inverse_cosine(latitude: Float64, edges: Float64) -> Float64:
    """Return 1 / cos φ [lat]; of a row at a pole its mean over the cap, from the cells' edges [lat + 1]."""
    mean = np.diff(edges) / np.diff(np.sin(edges))
    return np.where(_at_pole(latitude), mean, 1 / np.maximum(np.cos(latitude), AT_POLE))


def along_meridian(latitude: Float64) -> tuple[Float64, Float64]:
    """Return the two matrices [lat, lat] whose sum of products is ∂/∂φ, from latitudes [lat] in radians.

    The first is for the field, the second for the field half a turn away.
    """
    circle = _great_circle(latitude)
    start = circle.index((0, 0, float(latitude[0])))
    found = np.zeros((2, len(latitude), len(latitude)))
    for row, at in enumerate(latitude):
        near = circle[start + row - REACH : start + row + REACH + 1]
        powers = np.vander([place - at for _, _, place in near], increasing=True)
        for (side, other, _), weight in zip(near, np.linalg.inv(powers)[1], strict=True):
            found[side, row, other] += weight
    return found[0], found[1]


def _great_circle(latitude: Float64) -> list[tuple[int, int, float]]:
    """Side (1: beyond a pole), row and place of this side's rows and of REACH beyond either end."""
    count = len(latitude)
    own = [(0, row, float(latitude[row])) for row in range(count)]

    def beyond(rows: range) -> list[tuple[int, int, float]]:
        end = latitude[rows[0]]
        once = rows[1:] if _at_pole(end) else rows  # a row at the pole itself is on this side already
        return [(1, row, float(np.copysign(np.pi, end) - latitude[row])) for row in once[:REACH]]

    return beyond(range(count))[::-1] + own + beyond(range(count - 1, -1, -1))


def _at_pole(latitude: NDArray[np.float64] | np.float64) -> NDArray[np.bool_]:
    return np.asarray(np.abs(np.abs(latitude) - np.pi / 2) < AT_POLE)


def _by_wave(count: int, multiplier: Callable[[Float64], NDArray[np.number]]) -> Float64:
    """The matrix [lon, lon] that multiplies each wave of a row by a function of its number, from the right."""
    waves = np.arange(count // 2 + 1, dtype=np.float64)
    return np.fft.irfft(np.fft.rfft(np.eye(count), axis=1) * multiplier(waves), n=count, axis=1)
