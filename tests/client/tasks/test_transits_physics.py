"""Transits against what can be said without computing them."""

import numpy as np
import pytest

from astrofed.client.tasks.transits_physics import (
    Transit,
    central_duration,
    covered,
    light_curve,
    phase,
    scaled_axis,
)

UNIFORM = (0.0, 0.0)
MINUTE = 1 / 1440


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.3])
def test_a_uniform_disc_loses_the_overlap_of_two_circles(ratio: float) -> None:
    inside, crossing, outside = np.array([0.0, 0.3, 1 - ratio]), np.linspace(1 - ratio, 1 + ratio, 41)[1:-1], 1 + ratio
    np.testing.assert_allclose(covered(inside, ratio, UNIFORM), ratio**2, rtol=1e-3)
    a = np.arccos((crossing**2 + ratio**2 - 1) / (2 * crossing * ratio))
    b = np.arccos((crossing**2 + 1 - ratio**2) / (2 * crossing))
    lens = (ratio**2 * (a - np.sin(2 * a) / 2) + b - np.sin(2 * b) / 2) / np.pi
    np.testing.assert_allclose(covered(crossing, ratio, UNIFORM), lens, atol=1e-3 * ratio**2)
    assert not covered(np.array([outside, 2.0]), ratio, UNIFORM).any()


def test_a_small_disc_takes_the_brightness_behind_it() -> None:
    u1, u2 = 0.5, 0.2
    distance = np.linspace(0, 0.9, 10)
    mu = np.sqrt(1 - distance**2)
    brightness = (1 - u1 * (1 - mu) - u2 * (1 - mu) ** 2) / (1 - u1 / 3 - u2 / 6)
    np.testing.assert_allclose(covered(distance, 0.01, (u1, u2)), 1e-4 * brightness, rtol=2e-3)


def test_the_earth_crosses_the_sun_in_thirteen_hours() -> None:
    assert scaled_axis(365.25, 1.0) == pytest.approx(215.0, rel=2e-3)
    assert central_duration(365.25, 1.0) * 24 == pytest.approx(13.0, rel=5e-3)
    central = Transit(365.25, 0.0, 0.00916, 0.0, 215.0, UNIFORM)
    assert central.duration * 24 == pytest.approx(13.0 * 1.00916, rel=5e-3)
    assert Transit(365.25, 0.0, 0.00916, 1.1, 215.0, UNIFORM).duration == 0


def test_a_light_curve_begins_and_ends_with_the_contacts_and_repeats() -> None:
    planet = Transit(3.0, 1.0, 0.1, 0.4, 9.0, (0.4, 0.2))
    time = np.arange(0, 6, MINUTE)
    flux = light_curve(time, planet, 1e-6)
    dimmed = np.flatnonzero(flux[:4320] < 1 - 1e-9)
    assert len(dimmed) * MINUTE == pytest.approx(planet.duration, abs=3 * MINUTE)
    assert time[dimmed].mean() == pytest.approx(1.0, abs=MINUTE)
    np.testing.assert_allclose(flux[:4320], flux[4320:], atol=1e-7)


def test_a_long_exposure_blurs_but_keeps_the_light() -> None:
    planet = Transit(5.0, 2.0, 0.1, 0.0, 12.0, (0.4, 0.2))
    time = np.arange(1.5, 2.5, MINUTE)
    sharp, blurred = (1 - light_curve(time, planet, exposure) for exposure in (1e-6, 30 * MINUTE))
    assert blurred.sum() == pytest.approx(sharp.sum(), rel=1e-3)
    assert np.count_nonzero(blurred > 1e-9) > np.count_nonzero(sharp > 1e-9) + 20


def test_phases_lie_about_the_nearest_transit() -> None:
    np.testing.assert_allclose(phase(np.array([0.9, 1.1, 3.4, -4.0]), 2.0, 1.0), [-0.1, 0.1, 0.4, -1.0])
