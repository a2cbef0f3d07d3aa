"""Runs over TLS with real processes: the embedded engine's model, whoever is killed on the way."""

import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from astrofed.server.record import read_record, verify_run

pytestmark = pytest.mark.slow


def _model(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_deployed_run_gives_the_embedded_engines_model(
    deployment: Any, planets: dict[str, Any], embedded: Callable[[dict[str, Any]], str]
) -> None:
    deployment.enroll("tess", "k2", "la_silla", "keck")
    deployment.submit(planets)
    deployment.start()
    deployment.connect("tess", "k2", "la_silla", "keck")
    assert deployment.finish("small").status == "done"
    folder = deployment.run_folder("small")
    verify_run(folder)
    assert (folder / "report.html").is_file()
    assert _model(folder) == embedded(planets)


def test_whoever_is_killed_is_started_again_and_the_model_is_the_same(
    deployment: Any, planets: dict[str, Any], embedded: Callable[[dict[str, Any]], str]
) -> None:
    plan = {**planets, "name": "killed", "rounds": 10}
    deployment.submit(plan)
    for number, module in enumerate(("link_app", "gateway_server", "worker"), start=1):
        deployment.reach("killed", 2 * number)
        deployment.kill(f"astrofed.server.service.{module}")
    assert deployment.finish("killed").status == "done"
    folder = deployment.run_folder("killed")
    verify_run(folder)
    _, rounds = read_record(folder)
    assert [entry.round for entry in rounds] == list(range(11))
    assert all(len(entry.accepted) == 4 and not entry.quarantined for entry in rounds[1:])
    assert _model(folder) == embedded(plan)


def test_a_killed_server_goes_on_with_its_runs_when_it_is_started_again(
    deployment: Any, planets: dict[str, Any], embedded: Callable[[dict[str, Any]], str]
) -> None:
    plan = {**planets, "name": "server killed", "rounds": 6}
    deployment.submit(plan)
    deployment.reach("server killed", 2)
    workers = deployment.children("astrofed.server.service.worker")
    os.kill(deployment.server.pid, signal.SIGKILL)
    deployment.server.wait()
    deployment.until(
        lambda: not any(deployment.children(f"astrofed.server.service.{m}") for m in ("worker", "gateway_server")),
        "nobody outlives the server",
    )
    assert len(workers) == 1
    deployment.start()
    assert deployment.finish("server killed").status == "done"
    assert _model(deployment.run_folder("server killed")) == embedded(plan)


def test_the_server_ends_cleanly(deployment: Any) -> None:
    assert deployment.stop() == 0
    assert not deployment.children("astrofed.server.service.gateway_server")
