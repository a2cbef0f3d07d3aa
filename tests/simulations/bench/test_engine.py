"""The engine bench compares like with like: every runtime ends with the same model. Its times are not tested."""

import json

import pytest
import torch

from astrofed.simulations.bench.engine import BARE, EMBEDDED, FLOWER, compare
from astrofed.simulations.bench.result import BenchResult, this_machine


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
