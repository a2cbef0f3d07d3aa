"""The command line as users and scripts meet it: help, exit codes, JSON alone on the output, one readable error."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

COMMANDS = (
    "", "simulate", "train", "plan", "plan check", "plan matrix", "plugins", "data", "data check", "data describe",
    "data import", "data stats",
    "client", "client ledger", "client check", "client policy",
    "bench", "bench engine", "bench aggregation", "bench model", "export", "report", "verify",
)  # fmt: skip


def astrofed(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "astrofed.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd or Path(__file__).parent, timeout=300)


@pytest.fixture
def plan(tmp_path: Path, small: dict[str, Any]) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(tomli_w.dumps({**small, "rounds": 2}))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    done = astrofed(*command.split(), "--help")
    assert done.returncode == 0
    if command not in ("plan", "data", "client", "bench"):
        assert "Example: astrofed" in done.stdout or "First steps" in done.stdout


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, contextlib, astrofed.cli as c\n"
        "with contextlib.suppress(SystemExit): c.app(['--help'], standalone_mode=False)\n"
        "print([m for m in ('torch', 'flwr', 'numpy', 'pydantic', 'matplotlib', 'zarr', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_simulate_prints_one_json_object(plan: Path, tmp_path: Path) -> None:
    done = astrofed("simulate", str(plan), "--out", str(tmp_path / "run"), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) >= {"run", "mode", "rounds", "participants", "metrics", "baselines", "history", "privacy"}
    assert result["rounds"] == 2 and Path(result["model"]).is_file() and Path(result["report"]).is_file()
    assert "round 2 of 2" in done.stderr
    verified = astrofed("verify", result["run"], "--json")
    assert verified.returncode == 0 and json.loads(verified.stdout)["rounds"] == 3
    assert astrofed("report", result["run"]).returncode == 0


def test_people_see_a_table(plan: Path, tmp_path: Path) -> None:
    done = astrofed("train", str(plan), "--out", str(tmp_path / "run"), "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert "loss" in done.stdout and "report.html" in done.stdout and "round 1 of 1" in done.stdout


def test_training_without_a_plan_takes_the_modes_own_from_the_folder_of_plans(plan: Path, tmp_path: Path) -> None:
    plan.rename(tmp_path / "quickstart.toml")
    none = astrofed("train", "--mode", "metta", cwd=tmp_path)
    assert none.returncode == 2 and "there is no configs/metta.toml here" in none.stderr
    assert "customer" in none.stderr and "meta," in none.stderr
    (tmp_path / "configs").mkdir()
    (tmp_path / "quickstart.toml").rename(tmp_path / "configs" / "quickstart.toml")
    done = astrofed("train", "--rounds", "1", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "runs" / "small" / "report.html").is_file(), done.stderr


@pytest.mark.parametrize("mode", ["meta", "nas", "evolution", "customer", "multimodal", "federated"])
def test_where_there_is_no_folder_of_plans_the_shipped_one_is_taken_and_named(mode: str, tmp_path: Path) -> None:
    done = astrofed("train", "--mode", mode, "--set", "rounds=0", "--json", cwd=tmp_path)
    plan = "quickstart" if mode == "federated" else mode
    assert done.returncode == 2 and done.stdout == "" and re.search(rf"^plan: /.*/{plan}\.toml$", done.stderr, re.M)
    assert f"{plan}.toml: rounds" in done.stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("--set", "rouns=3"), "did you mean 'rounds'?"),
        (("--set", "rounds=0"), "greater than or equal to 1"),
        (("--set", "task.name=planet"), "nearest: planets"),
        (("--set", "strategy.name=FedAvgg"), "FedAvg"),
        (("--set", "engine.name=cloud"), "embedded"),
        (("--set", "task.no_such_option=1"), "task.no_such_option"),
        (("--set", "novalue"), "expected key=value"),
        (("--plugin", "nowhere.py"), "does not exist"),
        (("--set", "participants.tess.data=nowhere.parquet"), "tess can't take part"),
    ],
)
def test_a_mistake_is_one_readable_error(plan: Path, tmp_path: Path, change: tuple[str, ...], expected: str) -> None:
    done = astrofed("simulate", str(plan), "--out", str(tmp_path / "run"), *change, "--json", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert expected in done.stderr and "Traceback" not in done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1


def test_a_missing_plan_says_the_nearest(plan: Path, tmp_path: Path) -> None:
    done = astrofed("simulate", str(tmp_path / "plam.toml"))
    assert done.returncode == 2 and "did you mean" in done.stderr and "plan.toml" in done.stderr


def test_plan_check(plan: Path) -> None:
    done = astrofed("plan", "check", str(plan), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["plan"]["rounds"] == 2 and any("no differential privacy" in line for line in found["guarantees"])


def test_plugins_lists_all_kinds(plan: Path) -> None:
    done = astrofed("plugins", "--json")
    listed = json.loads(done.stdout)["plugins"]
    assert {entry["kind"] for entry in listed} == {"tasks", "models", "strategies", "rules", "attacks"}
    assert {"name": "robust", "kind": "strategies"}.items() <= next(e for e in listed if e["name"] == "robust").items()
    assert all(entry["summary"] and entry["origin"] for entry in listed)


def test_data_commands(tmp_path: Path) -> None:
    assert "can be used" in astrofed("data", "check", "bundled:planets/keck").stdout
    assert (
        json.loads(astrofed("data", "describe", "bundled:worlds/earthlike", "--json").stdout)["privacy_unit"] == "world"
    )
    stats = json.loads(astrofed("data", "stats", "bundled:planets/keck", "--json").stdout)["variables"]
    assert next(row for row in stats if row["name"] == "st_teff")["unit"] == "K"
    missing = astrofed("data", "check", str(tmp_path / "none.zarr"))
    assert missing.returncode == 2 and "does not exist" in missing.stderr
    (tmp_path / "broken.zarr").mkdir()
    broken = astrofed("data", "check", str(tmp_path / "broken.zarr"), "--json")
    assert broken.returncode == 2 and json.loads(broken.stdout)["ok"] is False


def test_ctrl_c_once_ends_after_the_round_and_twice_at_once(plan: Path, tmp_path: Path) -> None:
    for presses, rounds in ((1, range(1, 400)), (2, range(0, 400))):
        out = tmp_path / f"run {presses}"
        command = [
            sys.executable,
            "-m",
            "astrofed.cli",
            "simulate",
            str(plan),
            "--out",
            str(out),
            "--set",
            "rounds=400",
        ]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
        )
        assert process.stdout is not None
        for line in process.stdout:
            if "round   1 of 400" in line:
                break
        for _ in range(presses):
            process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "Traceback" not in error and error.count("error: ") == 1
        verified = json.loads(astrofed("verify", str(out), "--json").stdout)
        assert verified["rounds"] - 1 in rounds
        assert not list(out.rglob("*.unfinished"))
