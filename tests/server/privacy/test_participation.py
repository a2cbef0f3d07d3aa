"""Who is asked, and what stands where about it."""

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np

from astrofed.server.privacy.participation import OPERATORS, asked, for_operator
from astrofed.shared.plan import CentralPrivacy
from astrofed.shared.privacy.noise import UnsafeSeededRandomness
from astrofed.shared.record import Quarantine

NODES = [5, 3, 8, 1, 9]


def test_each_participant_is_asked_with_its_probability_and_independently() -> None:
    section, random = CentralPrivacy(epsilon=1, delta=0.01, sampling_rate=0.3), UnsafeSeededRandomness(1)
    drawn = np.array([[node in asked(NODES, section, 1, random) for node in NODES] for _ in range(20_000)])
    assert np.abs(drawn.mean(axis=0) - 0.3).max() < 0.015
    assert np.abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.03
    assert asked(NODES, CentralPrivacy(epsilon=1, delta=0.01), 7, random) == NODES


def test_cohorts_take_turns_and_ask_each_participant_once() -> None:
    section = CentralPrivacy(epsilon=1, delta=0.01, mechanism="tree", cohorts=2)
    turns = [asked(NODES, section, number, UnsafeSeededRandomness(1)) for number in (1, 2, 3)]
    assert turns == [[5, 8, 9], [3, 1], [5, 8, 9]]


def test_the_record_names_nobody_and_the_operators_file_is_its_own(tmp_path: Path) -> None:
    entry: dict[str, Any] = {
        "accepted": ("a", "b"),
        "weights": {"a": 1.0},
        "quarantined": (Quarantine(participant="c", reason="no reply"),),
        "train_metrics": {"loss": 1.0},
        "bytes": 123,
        "loss": 0.5,
    }
    public = for_operator(tmp_path, 4, 1.5, entry)
    assert public == {"accepted": (), "weights": {}, "quarantined": (), "train_metrics": {}, "bytes": None, "loss": 0.5}
    path = tmp_path / OPERATORS
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {
        "round": 4,
        "seconds": 1.5,
        "bytes": 123,
        "accepted": ["a", "b"],
        "quarantined": [{"participant": "c", "reason": "no reply"}],
    }
