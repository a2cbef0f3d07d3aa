"""Numbers in reports: what people read is what was measured."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrofed.server.report_numbers import change, count, duration, figure, listed, percent, relation, size, spans


def plain(text: str) -> str:
    """With ordinary blanks and hyphens."""
    return re.sub(r"\s", " ", text).replace("\N{MINUS SIGN}", "-")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.7126, "0.713"),
        (0.0, "0"),
        (12.34, "12.3"),
        (-12.34, "-12.3"),
        (999.9, "1 000"),
        (12345.0, "12 300"),
        (99999.0, "1.00 × 10⁵"),
        (0.000321, "3.21 × 10⁻⁴"),
        (-4.2e-12, "-4.20 × 10⁻¹²"),
        (math.inf, "inf"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert plain(figure(value)) == text


@given(st.floats(1e-12, 1e12))
def test_a_figure_is_within_half_a_unit_of_its_last_digit(value: float) -> None:
    """Guards against rounding twice, and against a lost power of ten."""
    raised = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    text = figure(value).translate(raised)
    mantissa, _, power = re.sub(r"\s", "", text).partition("×10")
    assert math.isclose(float(mantissa) * 10.0 ** int(power or 0), value, rel_tol=0.0051)


def test_changes_and_relations_agree_in_direction() -> None:
    assert plain(change(0.71, 1.0)) == "-29 %" and plain(relation(0.71, 1.0, "x")) == "29 % below x"
    assert plain(change(1.03, 1.0)) == "+3 %" and plain(relation(1.03, 1.0, "x")) == "3 % above x"
    assert plain(change(5.2, 1.0)) == "× 5.2" and plain(relation(5.2, 1.0, "x")) == "5.2 times x"
    assert plain(change(1.001, 1.0)) == "0 %" and plain(relation(1.001, 1.0, "x")) == "level with x"
    assert change(1.0, 0.0) == "–"


def test_the_rest() -> None:
    assert plain(percent(0.931)) == "93 %" and plain(percent(0.004)) == "0.4 %" and plain(percent(0)) == "0 %"
    assert [plain(size(n)) for n in (0, 999, 12_345, 143_000_000)] == ["0 B", "999 B", "12.3 kB", "143 MB"]
    assert [plain(duration(s)) for s in (0.42, 8.21, 200, 7500)] == ["0.42 s", "8.2 s", "3 min 20 s", "2 h 5 min"]
    assert plain(count(196740)) == "196 740"
    assert [listed(items) for items in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
    assert spans([1, 2, 3, 7, 9, 10]) == "1–3, 7, 9–10" and spans([]) == ""
