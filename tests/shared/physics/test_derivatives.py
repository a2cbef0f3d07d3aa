"""Derivatives along parallels and meridians of waves whose derivatives are known."""

import math

import numpy as np
import pytest

from astrofed.shared.physics.derivatives import along_meridian, around, half_turn, inverse_cosine

GAUSSIAN = np.arcsin(np.polynomial.legendre.leggauss(32)[0])
EVEN = np.linspace(-math.pi / 2, math.pi / 2, 33)  # with a row at either pole


@pytest.mark.parametrize("count", [3, 8, 9, 64])
def test_waves_along_a_parallel_have_exact_derivatives(count: int) -> None:
    longitude = np.arange(count) * 2 * np.pi / count
    for wave in range((count + 1) // 2):
        row, slope = np.sin(wave * longitude + 0.3), wave * np.cos(wave * longitude + 0.3)
        np.testing.assert_allclose(row @ around(count, 1.0), slope, atol=1e-11)
        np.testing.assert_allclose(row[::-1] @ around(count, -1.0), slope[::-1], atol=1e-11)
        np.testing.assert_allclose(row @ half_turn(count), (-1) ** wave * row, atol=1e-12)


@pytest.mark.parametrize("latitude", [GAUSSIAN, GAUSSIAN[::-1], EVEN])
def test_a_meridian_goes_on_beyond_the_poles(latitude: np.ndarray) -> None:
    """cos φ cos λ is smooth across the poles, where on the other side cos λ has the other sign."""
    here, beyond = along_meridian(latitude)
    found = here @ np.cos(latitude) + beyond @ -np.cos(latitude)
    np.testing.assert_allclose(found, -np.sin(latitude), atol=2e-7)
    cut = here @ np.cos(latitude) + beyond @ np.cos(latitude)  # with a kink at the poles
    assert np.abs(cut + np.sin(latitude)).max() > 0.1


def test_the_waves_of_a_spectral_model_are_seen_whole() -> None:
    """A wave of 15 crests round a meridian of 32 rows a side; second-order differences lose a third of its slope."""
    here, _ = along_meridian(GAUSSIAN)
    wave = 15 * GAUSSIAN
    found = here @ np.sin(wave)
    inside = slice(4, -4)
    assert np.abs(found - 15 * np.cos(wave))[inside].max() / 15 < 0.06


def test_a_row_at_a_pole_has_its_caps_mean() -> None:
    edges = np.concatenate(([-math.pi / 2], EVEN[1:] / 2 + EVEN[:-1] / 2, [math.pi / 2]))
    found = inverse_cosine(EVEN, edges)
    half = EVEN[1] - EVEN[0]
    assert found[0] == pytest.approx((half / 2) / (1 - math.cos(half / 2))) and np.isfinite(found).all()
    np.testing.assert_allclose(found[1:-1], 1 / np.cos(EVEN[1:-1]))
