"""A benchmark's result: whether its targets are met, and that it can be written as JSON and read as a table."""

import json
from io import StringIO

from rich.console import Console

from astrofed.simulations.bench.result import BenchResult, Row, Target, this_machine


def result(*met: bool | None) -> BenchResult:
    targets = tuple(Target(f"target {number}", 1.5, outcome) for number, outcome in enumerate(met))
    rows = (
        Row("digits-cnn", 100, "astrofed embedded", seconds_per_round=0.25, ratio_to_bare=1.125, targets=targets),
        Row("digits-cnn", 100, "pfl", note="not evaluable: pip install 'astrofed[bench,sim]'"),
    )
    return BenchResult("A round", this_machine(), rows, {"quick": True})


def test_one_missed_target_is_a_miss_and_an_unknown_one_is_unknown() -> None:
    assert result(True, True).met is True
    assert result(True, None).met is None
    assert result(True, None, False).met is False


def test_it_can_be_written_as_json() -> None:
    data = json.loads(json.dumps(result(True, False).to_dict(), allow_nan=False))
    assert data["met"] is False and len(data["rows"]) == 2
    assert data["rows"][0]["targets"][1] == {"target": "target 1", "measured": 1.5, "met": False}
    assert data["rows"][1]["seconds_per_round"] is None
    assert data["machine"]["cores"] >= 1 and data["machine"]["software"]["torch"][0].isdigit()


def test_the_table_says_which_targets_are_missed() -> None:
    written = StringIO()
    Console(width=200, file=written).print(result(True, False, None).table())
    text = written.getvalue()
    for words in ("MISSED", "met", "not evaluable", "250", "1.12", "pip install 'astrofed[bench,sim]'"):
        assert words in text
