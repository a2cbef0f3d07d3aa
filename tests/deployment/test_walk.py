"""From empty folders to a model by the documented commands alone: a server and four sites with their own clients."""

import hashlib
import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from astrofed.cli import app
from astrofed.server.record import read_record, verify_run

pytestmark = pytest.mark.slow
SITES = ("tess", "k2", "la_silla", "keck")


def _astrofed(*words: str) -> str:
    """Run a command in this process, which has imported what the command needs."""
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return str(done.stdout)


def _allow(policy: Path) -> None:
    """Edit a site's policy as its operator would."""
    text = policy.read_text()
    for key, value in {
        "tasks": '["planets"]',
        "models": '["mlp"]',
        "privacy": '"optional"',
        "epsilon": "50.0",
        "delta": "1e-3",
        "metrics": '["*"]',
        "statistics": '["*"]',
        "digits": "17",
    }.items():
        text, count = re.subn(rf"(?m)^{key} = \S+", f"{key} = {value}", text)
        assert count == 1, key
    policy.write_text(text)


def test_a_server_and_four_sites_are_set_up_and_train(
    deployment: Any, planets: dict[str, Any], embedded: Callable[[dict[str, Any]], str]
) -> None:
    homes = {name: deployment.folder / "homes" / name for name in SITES}
    server = ("--home", str(deployment.home))
    for name, home in homes.items():
        init = ("client", "init", str(home), "--name", name, "--contact", f"ops@{name}.example.org")
        own = _astrofed(*init, "--data", f"planets=bundled:planets/{name}")
        welcome = str(deployment.folder / f"{name}.json")
        said = _astrofed("server", "enroll", str(home / "request.json"), "--out", welcome, *server)
        compared = re.search(r"the site's key +(.*)", said)
        assert compared is not None and compared[1].strip() in own
        plans = re.search(r"the key of its plans +(.*)", said)
        assert plans is not None
        _astrofed("client", "join", welcome, str(home), "--fingerprint", plans[1].strip())
        _allow(home / "policy.toml")
    deployment.start()
    clients = [
        deployment.spawn([sys.executable, "-m", "astrofed.cli", "client", "start", str(home)], f"client-{name}")
        for name, home in homes.items()
    ]
    private = {
        **planets,
        "name": "private",
        "rounds": 2,
        "strategy": {"name": "robust", "rule": "trimmed-mean", "f": 1},
        "privacy": {"noise_multiplier": 1.0, "delta": 1e-4, "unit": "planet"},
    }
    planets = {**planets, "model": {"name": "mlp", "hidden": [1024, 1024]}}  # so large that it travels as a blob
    for plan in (planets, private):
        path = deployment.folder / f"{plan['name']}.toml"
        path.write_text(tomli_w.dumps(plan))
        _astrofed("server", "submit", str(path), *server)
    for plan in (planets, private):
        state = deployment.finish(plan["name"])
        assert state.status == "done", state.reason + deployment.logs()
        start, rounds = read_record(deployment.run_folder(plan["name"]))
        assert start is not None and [site.participant for site in start.enrolled] == list(SITES)
        assert all(len(entry.accepted) == 4 for entry in rounds[1:])
        verify_run(deployment.run_folder(plan["name"]))
        spent = {item.participant: item.epsilon for item in rounds[-1].privacy}
        assert set(spent) == (set(SITES) if "privacy" in plan else set())
        assert all(0 < epsilon < 50 for epsilon in spent.values())
    model = deployment.run_folder("small") / "model.safetensors"
    assert hashlib.sha256(model.read_bytes()).hexdigest() == embedded(planets)
    status = json.loads(_astrofed("server", "status", "small", "--json", *server))
    assert (status["status"], status["round"], status["model"]) == ("done", 3, str(model))
    for client in clients:
        client.send_signal(signal.SIGTERM)
    assert [client.wait(60) for client in clients] == [0, 0, 0, 0]
    assert deployment.stop() == 0
