"""Whole runs of mode 'meta': one site and many, resuming, adapted models at the sites' homes, the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from astrofed.cli import app
from astrofed.client.meta.keeping import MODEL
from astrofed.server.federation import Interrupted
from astrofed.shared.plan import Plan
from astrofed.shared.record import Round, Start
from astrofed.simulations.simulate import simulate


class StopAfter:
    """Asks to stop after some rounds."""

    def __init__(self, rounds: int) -> None:
        self._left = rounds + 1

    def started(self, plan: Plan, start: Start) -> None:
        """Say nothing."""

    def round_done(self, entry: Round) -> None:
        self._left -= 1

    def should_stop(self) -> bool:
        return self._left <= 0


@pytest.fixture
def few(small: dict[str, Any]) -> dict[str, Any]:
    small["participants"][2] = {"name": "kepler", "data": "bundled:planets/kepler"}
    small["participants"][3]["role"] = "evaluate"
    small["training"] = {"batch_size": 8, "learning_rate": 0.01, "optimizer": "adam"}
    return {**small, "mode": "meta", "meta": {"tasks": "stars", "episodes": 640, "inner_rate": 0.05}}


def test_many_sites_learn_to_adapt_and_a_stopped_run_goes_on_to_the_same_bytes(
    tmp_path: Path, few: dict[str, Any]
) -> None:
    whole = simulate(few, out=tmp_path / "whole")
    found = whole.metrics
    assert found["loss"] < found["unadapted/loss"] and found["loss"] < whole.baselines["zero-albedo"]
    assert {"unseen/loss", "unseen/unadapted/loss"} <= found.keys()
    with pytest.raises(Interrupted):
        simulate(few, out=tmp_path / "part", observer=StopAfter(2))
    again = simulate(few, out=tmp_path / "part", resume=True)
    assert again.model_path.read_bytes() == whole.model_path.read_bytes()
    report = whole.report.read_text()
    assert "unadapted" in report and "meta-learning over stars" in report


def test_the_command_trains_and_keeps_each_sites_own_model(tmp_path: Path, few: dict[str, Any]) -> None:
    few["mode"], few["meta"] = "federated", {"tasks": "sites"}
    plan = tmp_path / "plan.toml"
    plan.write_text(tomli_w.dumps(few))
    options = ["--mode", "meta", "--episodes", "64", "--support-shots", "4", "--rounds", "1", "--json"]
    out = tmp_path / "run"
    done = CliRunner().invoke(app, ["train", str(plan), *options, "--out", str(out)])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["mode"] == "meta" and told["participants"] == ["tess", "k2", "kepler", "keck"]
    assert "unadapted/loss" in told["metrics"]
    assert sorted(path.parent.name for path in out.glob(f"sites/*/{MODEL}")) == ["k2", "keck", "kepler", "tess"]
    assert "episodes = 64" in (out / "plan.toml").read_text() and "support_shots = 4" in (out / "plan.toml").read_text()


def test_one_site_alone_is_classic_meta_learning(tmp_path: Path, few: dict[str, Any]) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(tomli_w.dumps(few))
    options = ["--participants", "1", "--rounds", "1", "--episodes", "64", "--json", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, ["train", str(plan), *options])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["mode"] == "meta" and told["participants"] == ["tess", "keck"]
