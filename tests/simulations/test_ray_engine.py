"""The Ray engine runs the same apps and ends with the same model. Ray runs in processes of its own, not in this one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from astrofed.server.checkpoint import load_arrays
from astrofed.simulations.simulate import simulate


def on_ray(plan: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "plan.toml"
    path.write_text(tomli_w.dumps(plan))
    command = [sys.executable, "-m", "astrofed.cli", "simulate", str(path), "--engine", "ray", "--json"]
    return subprocess.run([*command, "--out", str(folder / "ray")], capture_output=True, text=True, cwd=folder)


@pytest.mark.slow
def test_both_engines_give_the_same_model(tmp_path: Path, small: dict[str, Any]) -> None:
    small["rounds"] = 3
    small["participants"][3]["attack"] = {"name": "sign-flip"}
    small["strategy"] = {"name": "robust", "rule": "trimmed-mean", "f": 1}
    small["engine"] = {"workers": 2, "threads": 1}
    embedded = simulate(small, out=tmp_path / "embedded")
    done = on_ray(small, tmp_path)
    assert done.returncode == 0, done.stderr
    ray = json.loads(done.stdout)
    first, second = load_arrays(embedded.model_path), load_arrays(Path(ray["model"]))
    assert max(float(np.abs(first[name] - second[name]).max()) for name in first) <= 1e-5
    assert [list(entry.accepted) for entry in embedded.rounds] == [entry["accepted"] for entry in ray["history"]]
    assert ray["metrics"]["loss"] == pytest.approx(embedded.metrics["loss"], rel=1e-4)


@pytest.mark.slow
def test_mistakes_come_through(tmp_path: Path, small: dict[str, Any]) -> None:
    small["participants"][0]["data"] = str(tmp_path / "nowhere.parquet")
    done = on_ray(small, tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert "tess can't take part" in done.stderr
