"""A world's constants: derived quantities against published ones, and what is refused."""

import dataclasses
import math

import pytest

from astrofed.shared.planet import Planet

EARTH = Planet(
    name="Earth",
    radius_m=6.371e6,
    gravity_m_s2=9.80665,
    rotation_period_s=86164.1,
    obliquity_deg=23.4,
    eccentricity=0.0167,
    star_temperature_k=5772.0,
    molar_mass_kg_mol=28.9647e-3,
)


def test_earth_s_air_has_its_textbook_constants() -> None:
    assert EARTH.gas_constant == pytest.approx(287.05, abs=0.02)
    assert EARTH.virtual_temperature_factor == pytest.approx(0.608, abs=5e-4)
    assert EARTH.angular_velocity == pytest.approx(7.2921e-5, rel=1e-5)


@pytest.mark.parametrize(("molar_mass", "expected"), [(44.01e-3, 188.9), (28.02e-3, 296.7)])
def test_the_gas_constant_follows_the_composition(molar_mass: float, expected: float) -> None:
    """Earth's 287 for a CO2 atmosphere is wrong by half: 188.9 J/kg/K."""
    planet = dataclasses.replace(EARTH, molar_mass_kg_mol=molar_mass)
    assert planet.gas_constant == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("radius_m", 0.0, "positive"),
        ("gravity_m_s2", -9.8, "positive"),
        ("rotation_period_s", math.nan, "finite"),
        ("obliquity_deg", math.inf, "finite"),
        ("eccentricity", 1.0, r"\[0, 1\)"),
        ("eccentricity", -0.1, r"\[0, 1\)"),
    ],
)
def test_an_impossible_world_is_refused(field: str, value: float, words: str) -> None:
    with pytest.raises(ValueError, match=f"planet 'Earth': {field} is {value}; .*{words}"):
        dataclasses.replace(EARTH, **{field: value})
