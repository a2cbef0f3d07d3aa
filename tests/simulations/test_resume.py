"""A run killed at any moment goes on and ends with the same bytes as one that was not killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from astrofed.server.record import read_record, verify_run

HERE = Path(__file__).parent
PLUGIN = HERE / "killing_strategy.py"
# Runs the command; between a round's checkpoint and its line the process may be killed, too.
DRIVER = """
import os, signal, sys
from astrofed.server.record import RunRecord
from astrofed.shared.record import Round
append, at = RunRecord.append, int(os.environ.get("ASTROFED_TEST_KILL_LINE", "-1"))
def dying(self, line, **settings):
    if isinstance(line, Round) and line.round == at:
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, line, **settings)
RunRecord.append = dying
from astrofed.cli import main
main()
"""


def run(plan: Path, out: Path, *extra: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DRIVER, "simulate", str(plan), "--out", str(out), "--plugin", str(PLUGIN), *extra]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, cwd=out.parent)


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bytes(tmp_path: Path, small: dict[str, Any]) -> None:
    small["strategy"] = {"name": "Killing"}
    plan = tmp_path / "plan.toml"
    plan.write_text(tomli_w.dumps(small))
    whole = tmp_path / "whole"
    done = run(plan, whole)
    assert done.returncode == 0, done.stderr
    places = [
        {"ASTROFED_TEST_KILL": "configure_train:1"},
        {"ASTROFED_TEST_KILL": "aggregate_train:2"},
        {"ASTROFED_TEST_KILL": "aggregate_evaluate:3"},
        {"ASTROFED_TEST_KILL_LINE": "0"},
        {"ASTROFED_TEST_KILL_LINE": "4"},
    ]
    for number, place in enumerate(places):
        out = tmp_path / f"killed {number}"
        assert run(plan, out, **place).returncode == -signal.SIGKILL
        again = run(plan, out, "--resume")
        assert again.returncode == 0, again.stderr
        assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes(), place
        _, rounds = read_record(out)
        assert [entry.checkpoint_sha256 for entry in rounds] == [e.checkpoint_sha256 for e in read_record(whole)[1]]
        assert verify_run(out).rounds == 5
