"""The engine bench compares like with like: every runtime ends with the same model. Its times are not tested."""

import importlib.util
import json
from dataclasses import replace
from importlib.machinery import ModuleSpec

import pytest
import torch

from astrofed.simulations.bench.engine import BARE, EMBEDDED, FIFTY, FLOWER, _targets, compare
from astrofed.simulations.bench.first_round import measure_first_round
from astrofed.simulations.bench.fit import fit_rows
from astrofed.simulations.bench.result import BenchResult, Row, Target, this_machine


def test_the_embedded_engine_and_the_bare_loop_end_with_the_same_weights() -> None:
    rows = compare("trivial", 3, rounds=3, ray_rounds=0, starts=0)
    assert [row.runtime for row in rows] == [EMBEDDED, BARE, FLOWER]
    assert rows[0].difference == 0
    assert "not measured" in rows[2].note and rows[2].seconds_per_round is None
    assert {target.met for target in rows[0].targets} == {None}  # without Flower and without starts: not evaluable
    text = json.dumps(BenchResult("title", this_machine(), tuple(rows)).to_dict())
    assert json.loads(text)["met"] is None and len(json.loads(text)["rows"]) == 3


def test_digits_are_trained_alike_by_all() -> None:
    pytest.importorskip("pfl")
    torch.set_num_threads(1)
    rows = compare("digits-cnn", 5, rounds=3, ray_rounds=0, starts=0)
    assert [row.runtime for row in rows] == [EMBEDDED, BARE, "pfl", FLOWER]
    assert rows[0].difference is not None and rows[0].difference < 1e-3
    assert rows[2].difference is not None and rows[2].difference < 1e-3


def test_without_the_peers_rows_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in ("pfl", "ray") else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    rows = compare("digits-cnn", 2, rounds=3, ray_rounds=3, starts=0)
    assert [row.runtime for row in rows] == [EMBEDDED, BARE, "pfl", FLOWER]
    assert all(row.note.startswith("not evaluable: pip install") and row.seconds_per_round is None for row in rows[2:])
    met = {target.target: target.met for target in rows[0].targets}
    assert met["a round costs no more than pfl's"] is None
    assert met["a round costs at most 1.2 times the bare loop"] is not None


def test_the_time_to_the_first_round_is_taken_in_a_process_of_its_own() -> None:
    call, process = measure_first_round("trivial", 2)
    assert 0 < call < process


def test_a_fit_is_measured_beside_the_plain_loop_and_lightnings_trainer() -> None:
    rows = fit_rows(repeats=3)
    assert [row.runtime for row in rows] == ["astrofed train_locally", "bare loop", "Lightning Trainer"]
    assert rows[1].ratio_to_bare == 1 and rows[1].overhead_s == 0
    assert all(row.seconds_per_round is not None and row.seconds_per_round > 0 for row in rows)


def test_less_overhead_than_can_be_measured_meets_the_target_without_a_number() -> None:
    ours, flower = Row("trivial", 10, EMBEDDED, overhead_s=-1e-4), Row("trivial", 10, FLOWER, overhead_s=0.1)
    assert _targets(ours, flower, "trivial")[0] == Target(FIFTY, None, True)
    assert _targets(replace(ours, overhead_s=0.01, overhead_ratio=10.0), flower, "trivial")[0].met is False
    assert _targets(ours, Row("trivial", 10, FLOWER), "trivial")[0].met is None
