"""Hydrostatic integration against analytic columns."""

import numpy as np
import pytest

from astrofed.client.data.hydrostatic import geopotential_height, virtual_temperature
from astrofed.shared.planet import Planet

PLANET = Planet("test", 6.371e6, 9.81, 86400.0, 23.4, 0.0, 5772.0)


def column(values: list[float]) -> np.ndarray:
    return np.array(values)[:, None, None]


@pytest.mark.parametrize("gravity", [3.7, 9.81, 24.8])
def test_isothermal_column_is_logarithmic_in_pressure(gravity: float) -> None:
    planet = Planet("test", 6.371e6, gravity, 86400.0, 23.4, 0.0, 5772.0)
    lev = np.array([0.01, 0.2, 0.5, 0.9, 0.99])
    zg = geopotential_height(column([250.0] * 5), None, np.zeros((1, 1)), lev, planet)
    np.testing.assert_allclose(zg[:, 0, 0], -planet.gas_constant * 250.0 / gravity * np.log(lev), rtol=1e-6)


def test_surface_geopotential_lifts_every_level_by_its_height() -> None:
    lev = np.array([0.3, 0.8])
    ta = column([230.0, 270.0])
    flat = geopotential_height(ta, None, np.zeros((1, 1)), lev, PLANET)
    high = geopotential_height(ta, None, np.full((1, 1), 2000.0 * PLANET.gravity_m_s2), lev, PLANET)
    np.testing.assert_allclose(high - flat, 2000.0, rtol=1e-5)


def test_constant_lapse_rate_converges_with_second_order() -> None:
    lapse, surface = 6.5e-3, 288.0
    exponent = PLANET.gas_constant * lapse / PLANET.gravity_m_s2
    errors = []
    for levels in (10, 20, 40):
        lev = np.exp(np.linspace(np.log(0.2), 0.0, levels))
        zg = geopotential_height(column(list(surface * lev**exponent)), None, np.zeros((1, 1)), lev, PLANET)
        errors.append(abs(zg[0, 0, 0] - surface / lapse * (1 - 0.2**exponent)))
    assert errors[0] < 5.0
    assert errors[0] / errors[1] > 3.5


def test_level_order_does_not_matter() -> None:
    lev = np.array([0.1, 0.4, 0.95])
    ta = column([210.0, 250.0, 290.0])
    down = geopotential_height(ta, ta * 1e-5, np.zeros((1, 1)), lev, PLANET)
    up = geopotential_height(ta[::-1], ta[::-1] * 1e-5, np.zeros((1, 1)), lev[::-1], PLANET)
    np.testing.assert_array_equal(down, up[::-1])


def test_moist_air_is_lighter_by_the_planets_own_factor() -> None:
    tv = virtual_temperature(np.array([300.0]), np.array([0.02]), PLANET)
    assert tv[0] == pytest.approx(300.0 * (1 + (28.02 / 18.01528 - 1) * 0.02))
