"""Four sites set up as the docs say, over TLS with real processes: private runs, and sites that are killed at work."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from astrofed.client.service.home import Home
from astrofed.client.service.setup import look_at_welcome, take_welcome
from astrofed.server.record import read_record, verify_run
from astrofed.server.service.home import ServerHome
from astrofed.server.service.welcomes import rotate

pytestmark = pytest.mark.slow
NAMES = ("tess", "k2", "la_silla", "keck")


@pytest.fixture(scope="module")
def sites(site_homes: Any, deployment: Any) -> Any:
    made = site_homes
    made.set_up_by_commands(NAMES[0])
    for name in NAMES[1:]:
        made.set_up(name)
    deployment.start()
    for name in NAMES:
        made.start(name)
    return made


def test_without_privacy_the_sites_make_the_embedded_engines_model(
    sites: Any, planets: dict[str, Any], embedded: Callable[[dict[str, Any]], str]
) -> None:
    import hashlib

    sites.deployment.submit({**planets, "name": "plain"})
    assert sites.deployment.finish("plain").status == "done", sites.deployment.logs()
    folder = sites.deployment.run_folder("plain")
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == embedded(planets)


def private(planets: dict[str, Any], name: str, epsilon: float, rounds: int) -> dict[str, Any]:
    return {
        **planets,
        "name": name,
        "rounds": rounds,
        "strategy": {"name": "robust", "rule": "trimmed-mean", "f": 1, "quorum": 3, "timeout_s": 120.0},
        "privacy": {"epsilon": epsilon, "delta": 1e-5, "unit": "planet"},
    }


def test_a_private_run_is_accounted_at_every_site(sites: Any, planets: dict[str, Any]) -> None:
    sites.deployment.submit(private(planets, "private", 4.0, 3))
    assert sites.deployment.finish("private").status == "done", sites.deployment.logs()
    folder = sites.deployment.run_folder("private")
    verify_run(folder)
    _, rounds = read_record(folder)
    spent = {each.participant: each.epsilon for each in rounds[-1].privacy}
    assert set(spent) == set(NAMES)
    (dataset,) = sites.ledger("k2")["datasets"]
    assert dataset["epsilon"] == pytest.approx(spent["k2"]) and 0 < spent["k2"] <= 4.0
    assert [run["reservations"] for run in dataset["runs"]] == [3]


def test_whoever_is_killed_at_work_costs_one_reply_and_no_false_ledger(sites: Any, planets: dict[str, Any]) -> None:
    sites.deployment.submit({**private(planets, "killed", 8.0, 6), "evaluate_every": 6})
    executor, first = sites.catch_at_work("k2", "killed")
    os.kill(executor, signal.SIGKILL)
    sites.deployment.reach("killed", first)
    executor, second = sites.catch_at_work("keck", "killed")
    sites.kill("keck")
    os.kill(executor, signal.SIGKILL)  # it is stopped, and can't see that its node is gone
    sites.start("keck")
    assert sites.deployment.finish("killed").status == "done", sites.deployment.logs()
    _, rounds = read_record(sites.deployment.run_folder("killed"))
    missing = {entry.round: {each.participant: each.reason for each in entry.quarantined} for entry in rounds[1:]}
    assert "killed while it worked" in missing[first]["k2"], missing
    assert "not repeated, for it would be charged twice" in missing[second]["keck"], missing
    assert all(len(entry.accepted) >= 3 for entry in rounds[1:])
    for name in NAMES:  # whole, and every round charged once, whether it was finished or not
        (dataset,) = sites.ledger(name)["datasets"]
        (run,) = [each for each in dataset["runs"] if each["run"] == "killed"]
        accepted = sum(name in entry.accepted for entry in rounds[1:])
        assert run["reservations"] - run["open"] == accepted and run["open"] <= 6 - accepted
        assert dataset["epsilon"] <= 8.0 + 1e-6


def test_a_node_ends_cleanly_and_comes_back_as_the_same(sites: Any) -> None:
    before = re.findall(r"as node (\d+)", sites.log("tess"))
    began = time.monotonic()
    sites.processes["tess"].send_signal(signal.SIGTERM)
    assert sites.processes["tess"].wait(60) == 0
    assert time.monotonic() - began < 30
    assert "stopped: " in sites.log("tess") and "0 replies still to be sent" in sites.log("tess")
    sites.start("tess")
    sites.deployment.until(lambda: len(re.findall("as node", sites.log("tess"))) > len(before), "tess is back")
    assert len(set(re.findall(r"as node (\d+)", sites.log("tess")))) == 1


def test_two_processes_never_serve_one_home(sites: Any) -> None:
    command = [sys.executable, "-m", "astrofed.cli", "client", "start", str(sites.folder / "k2")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "another process serves" in done.stderr


def test_keys_are_rotated_and_who_has_not_taken_the_new_ones_is_out(sites: Any, planets: dict[str, Any]) -> None:
    home = ServerHome(sites.deployment.home)
    for what in ("ca", "plan-key"):
        list(rotate(home, what, days=30, finish=False))
    for name in ("k2", "keck"):
        sites.kill(name)
    site = Home.open(sites.folder / "k2")
    welcome, fingerprint = look_at_welcome(site, home.welcomes / "k2.json")
    assert fingerprint is None  # signed by the key that the site trusts
    list(take_welcome(site, welcome))
    sites.start("k2")
    two = {**planets, "rounds": 1, "participants": [{"name": name, "data": "planets"} for name in ("tess", "k2")]}
    sites.deployment.submit({**two, "name": "overlap"})  # one site knows the old keys alone, one the old and the new
    assert sites.deployment.finish("overlap").status == "done", sites.deployment.logs()
    for what in ("ca", "plan-key"):
        list(rotate(home, what, days=30, finish=True))
    said = sites.deployment.home / "logs" / "gateway.log"
    sites.deployment.until(lambda: "new connections get the certificate" in said.read_text(), "it is taken over")
    sites.start("keck")
    sites.deployment.until(lambda: "not by the coordinator's CA" in sites.log("keck"), "keck refuses the server")
    one = {**two, "name": "rotated", "participants": [{"name": "k2", "data": "planets"}]}
    sites.deployment.submit(one)
    assert sites.deployment.finish("rotated").status == "done", sites.deployment.logs()
    late = Home.open(sites.folder / "keck")
    list(take_welcome(late, look_at_welcome(late, home.welcomes / "keck.json")[0]))
    before = sites.log("keck").count("as node")
    sites.kill("keck")
    sites.start("keck")
    sites.deployment.until(lambda: sites.log("keck").count("as node") > before, "keck is back")
