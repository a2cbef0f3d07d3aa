"""The record's lines: closed to unknown keys, exact through JSON."""

import pytest
from pydantic import ValidationError

from astrofed.shared.record import Quarantine, Round

LINE = Round(
    previous="0" * 64,
    round=3,
    accepted=("a", "b"),
    weights={"a": 0.1, "b": 1 / 3},
    quarantined=(Quarantine(participant="c", reason="NaN in 'weight' — 3 of 10 values"),),
    loss=0.123456789012345678,
    seconds=1.5,
    bytes=10,
    checkpoint="round-00003.safetensors",
    checkpoint_sha256="1" * 64,
)


def test_a_line_comes_back_from_json_exactly() -> None:
    text = LINE.model_dump_json()
    assert Round.model_validate_json(text) == LINE
    assert "\n" not in text


def test_unknown_keys_and_changes_are_refused() -> None:
    with pytest.raises(ValidationError):
        Round.model_validate({**LINE.model_dump(), "extra": 1})
    with pytest.raises(ValidationError):
        LINE.round = 4
