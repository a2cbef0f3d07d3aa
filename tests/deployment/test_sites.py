"""Four sites set up as the docs say, over TLS with real processes: private runs, and sites that are killed at work."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from astrofed.client.service.home import Home
from astrofed.client.service.setup import look_at_welcome, make_home, take_welcome
from astrofed.server.record import read_record, verify_run
from astrofed.server.service.setup import enroll_site
from astrofed.simulations.bundled import resolve_bundled

pytestmark = pytest.mark.slow
NAMES = ("tess", "k2", "la_silla", "keck")
POLICY = {  # what an operator edits in the policy that `client init` writes
    "tasks = []": 'tasks = ["planets"]',
    "models = []": 'models = ["mlp"]',
    'privacy = "required"': 'privacy = "optional"',
    "epsilon = 1.0": "epsilon = 8.0",
    "delta = 1e-6": "delta = 1e-5",
    "metrics = []": 'metrics = ["*"]',
    "digits = 2": "digits = 17",
    "statistics = []": 'statistics = ["*"]',
}


def astrofed(*arguments: str | Path) -> str:
    done = subprocess.run([sys.executable, "-m", "astrofed.cli", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Sites:
    """Sites' homes beside a server, and the processes that serve them."""

    def __init__(self, deployment: Any) -> None:
        self.deployment, self.folder = deployment, deployment.folder / "homes"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.folder.mkdir()

    def set_up_by_commands(self, name: str) -> None:
        home, welcome = self.folder / name, self.folder / f"{name}.welcome.json"
        data = f"planets=bundled:planets/{name}"
        said_by_site = astrofed("client", "init", home, "--name", name, "--contact", "test@example.org", "--data", data)
        said = astrofed("server", "enroll", home / "request.json", "--home", self.deployment.home, "--out", welcome)
        own, plans = re.findall(r"(?:[0-9a-f]{4} ){7}[0-9a-f]{4}", said)  # what coordinator and site read to each other
        assert own in said_by_site
        astrofed("client", "join", welcome, home, "--fingerprint", plans)
        self.edit_policy(home)

    def set_up(self, name: str) -> None:
        """Do by functions what the commands do; a process for each takes a second."""
        home, path = self.folder / name, self.folder / f"{name}.welcome.json"
        list(make_home(home, name, "test@example.org", {"planets": resolve_bundled(f"planets/{name}")}))
        list(enroll_site(self.deployment.home, home / "request.json", ("default",), out=path))
        welcome, _ = look_at_welcome(Home.open(home), path)
        list(take_welcome(Home.open(home), welcome))
        self.edit_policy(home)

    def edit_policy(self, home: Path) -> None:
        policy = home / "policy.toml"
        text = policy.read_text()
        for old, new in POLICY.items():
            assert old in text, old
            text = text.replace(old, new)
        policy.write_text(text)

    def start(self, name: str) -> None:
        with (self.deployment.folder / f"{name}.out").open("ab") as out:
            command = [sys.executable, "-m", "astrofed.cli", "client", "start", str(self.folder / name)]
            self.processes[name] = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def log(self, name: str) -> str:
        path = self.folder / name / "logs" / "node.log"
        return path.read_text() if path.exists() else ""

    def catch_at_work(self, name: str, run: str) -> tuple[int, int]:
        """Hold a site's executor in the midst of training; return its process and the round."""
        begun = re.compile(rf"run {run}: train, round (\d+) of \d+: begun")
        self.deployment.until(lambda: begun.search(self.log(name)) is not None, f"{name} trains")
        executor = self.executor(name)
        os.kill(executor, signal.SIGSTOP)
        self.deployment.until(lambda: begun.search(self.log(name).splitlines()[-1]) is not None, f"{name} is held")
        found = begun.search(self.log(name).splitlines()[-1])
        assert found is not None
        return executor, int(found[1])

    def executor(self, name: str) -> int:
        """Return the id of a site's executor."""
        home = str(self.folder / name).encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if b"astrofed.client.service.executor_process" in words and home in words:
                    return int(entry.name)
        raise AssertionError(f"{name} has no executor")

    def ledger(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(astrofed("client", "ledger", self.folder / name, "--json"))
        return found

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture(scope="module")
def sites(deployment: Any) -> Iterator[Sites]:
    made = Sites(deployment)
    made.set_up_by_commands(NAMES[0])
    for name in NAMES[1:]:
        made.set_up(name)
    deployment.start()
    for name in NAMES:
        made.start(name)
    yield made
    made.close()


def test_without_privacy_the_sites_make_the_embedded_engines_model(
    sites: Sites, planets: dict[str, Any], embedded: Callable[[dict[str, Any]], str]
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


def test_a_private_run_is_accounted_at_every_site(sites: Sites, planets: dict[str, Any]) -> None:
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


def test_whoever_is_killed_at_work_costs_one_reply_and_no_false_ledger(sites: Sites, planets: dict[str, Any]) -> None:
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


def test_a_node_ends_cleanly_and_comes_back_as_the_same(sites: Sites) -> None:
    before = re.findall(r"as node (\d+)", sites.log("tess"))
    began = time.monotonic()
    sites.processes["tess"].send_signal(signal.SIGTERM)
    assert sites.processes["tess"].wait(60) == 0
    assert time.monotonic() - began < 30
    assert "stopped: " in sites.log("tess") and "0 replies still to be sent" in sites.log("tess")
    sites.start("tess")
    sites.deployment.until(lambda: len(re.findall("as node", sites.log("tess"))) > len(before), "tess is back")
    assert len(set(re.findall(r"as node (\d+)", sites.log("tess")))) == 1


def test_two_processes_never_serve_one_home(sites: Sites) -> None:
    command = [sys.executable, "-m", "astrofed.cli", "client", "start", str(sites.folder / "k2")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "another process serves" in done.stderr
