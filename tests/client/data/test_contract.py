"""Units of the cube contract."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astrofed.client.data.contract import AXES, FIELDS, conversion, normalise_unit
from astrofed.client.data.mistakes import WrongUnits


@pytest.mark.parametrize(
    ("given_unit", "expected"),
    [
        ("kg/kg", "kg kg-1"),
        ("m/s", "m s-1"),
        (" W m^-2 ", "W m-2"),
        ("W/m²", "W m-2"),
        ("m s**-1", "m s-1"),
        ("1", "1"),
    ],
)
def test_spellings_of_a_unit_are_one(given_unit: str, expected: str) -> None:
    assert normalise_unit(given_unit) == expected


@pytest.mark.parametrize(
    ("name", "unit", "factor", "offset"),
    [
        ("ps", "hPa", 100.0, 0.0),
        ("ps", "bar", 1e5, 0.0),
        ("ta", "degC", 1.0, 273.15),
        ("hus", "g/kg", 1e-3, 0.0),
        ("wap", "hPa s-1", 100.0, 0.0),
        ("pr", "m s-1", 1000.0, 0.0),
    ],
)
def test_units_convert_to_si(name: str, unit: str, factor: float, offset: float) -> None:
    assert conversion(FIELDS[name], unit, "cube") == (factor, offset)


def test_every_variable_accepts_its_own_unit() -> None:
    for variable in [*FIELDS.values(), *AXES.values()]:
        assert conversion(variable, variable.unit.name, "cube") == (1.0, 0.0)


@pytest.mark.parametrize("unit", [None, 3, "furlong", "K"])
def test_a_wrong_unit_is_named_with_what_is_accepted(unit: object) -> None:
    with pytest.raises(WrongUnits, match=r"ps declares .*Pa, hPa"):
        conversion(FIELDS["ps"], unit, "cube")


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=20))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise_unit(text)
    assert normalise_unit(once) == once
