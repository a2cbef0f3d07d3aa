"""A server on loopback with its own processes, and sites for it; everything is killed at the end."""

import base64
import errno
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import tomli_w
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from astrofed.client.service.home import Home
from astrofed.client.service.setup import look_at_welcome, make_home, take_welcome
from astrofed.server.service.home import ServerHome
from astrofed.server.service.jobs import ENDED, Job, Jobs, State
from astrofed.server.service.setup import enroll_site, make_server, submit_plan
from astrofed.server.service.sites import file_name
from astrofed.shared.keys import new_node_key, public_pem, write_key
from astrofed.shared.membership import OfferedDataset, make_request
from astrofed.simulations.bundled import resolve_bundled

PATIENCE_S = 240.0  # the machine may be busy with other things


class Deployment:
    """One server's folder, its processes, and sites' keys and processes."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.home, self.sites = folder, folder / "server", folder / "sites"
        self.port, self.admin_port = _free_port(), _free_port()
        self.sites.mkdir()
        self.keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.server: subprocess.Popen[bytes] | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        given = {"name": "test", "host": "127.0.0.1", "listen": "127.0.0.1", **settings}
        for _ in make_server(self.home, {**given, "port": self.port, "admin_port": self.admin_port}):
            pass

    def enroll(self, *names: str, federation: str = "default") -> None:
        """Make keys and requests for sites, and enroll them."""
        for name in names:
            key = self.keys[name] = new_node_key()
            write_key(self.sites / f"{name}.key", key)
            offered = OfferedDataset(name="planets", fingerprint="ab" * 32, unit="planet", units=100)
            request = self.sites / f"{name}.request.json"
            request.write_text(make_request(name, "test@example.org", [offered], key).to_json())
            for _ in enroll_site(self.home, request, (federation,), out=self.sites / f"{name}.welcome.json"):
                pass

    @staticmethod
    def fill(folder: Path, leave: int = 0) -> Path:
        """Fill the small disk that a folder lies on; deleting the file that is returned makes room again."""
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC
            file.truncate(max(0, file.tell() - leave))
        return filler

    def start(self) -> None:
        """Start the server and wait until it is ready."""
        command = [sys.executable, "-m", "astrofed.cli", "server", "start", "--home", str(self.home)]
        self.server = self.spawn(command, "server")
        self.until(lambda: b"ready: sites reach it" in (self.folder / "server.out").read_bytes(), "the server is ready")

    def stop(self) -> int:
        """End the server as systemd does; return its exit code."""
        assert self.server is not None
        self.server.send_signal(signal.SIGTERM)
        return self.server.wait(PATIENCE_S)

    def connect(self, *names: str, script: str = "small_node.py") -> subprocess.Popen[bytes]:
        """Start a process with these sites' nodes."""
        path = Path(__file__).with_name(script)
        return self.spawn([sys.executable, str(path), str(self.sites), *names], f"nodes-{names[0]}")

    @property
    def address(self) -> str:
        """Where sites reach the server."""
        return ServerHome(self.home).settings().address

    @staticmethod
    def free_port() -> int:
        """Return a port that nobody uses."""
        return _free_port()

    def client(self, context: ssl.SSLContext | None = None) -> httpx.Client:
        """Return an HTTP client that trusts the server's authority."""
        if context is None:
            context = ssl.create_default_context(cafile=str(self.home / "authority" / "ca.crt"))
        return httpx.Client(base_url=f"https://127.0.0.1:{self.port}", verify=context, timeout=PATIENCE_S)

    def signed(self, key: ec.EllipticCurvePrivateKey, seconds: float = 0.0) -> dict[str, str]:
        """Return the headers by which a node's key signs a request, at a time so many seconds from now."""
        when = datetime.fromtimestamp(time.time() + seconds, UTC).isoformat()
        signature = key.sign(when.encode(), ec.ECDSA(hashes.SHA256()))
        public = base64.b64encode(public_pem(key.public_key()).encode()).decode()
        return {
            "flwr-public-key": public,
            "flwr-timestamp": when,
            "flwr-signature": base64.b64encode(signature).decode(),
            "content-type": "application/protobuf",
        }

    def submit(self, plan: dict[str, Any], **options: Any) -> Job:
        """Submit a plan."""
        path = self.folder / f"{plan['name']}.toml"
        path.write_text(tomli_w.dumps(plan))
        given = {"name": None, "federation": "default", "wait_s": PATIENCE_S, "quorum": None, "valid_days": 1.0}
        job, _ = submit_plan(self.home, path, [], **{**given, **options})
        return job

    def state(self, run: str) -> State:
        """How a run stands."""
        return Jobs(self.home / "jobs").get(run).state

    def finish(self, run: str) -> State:
        """Wait until a run has ended; return how."""
        self.until(lambda: self.state(run).status in ENDED, f"run {run} ends")
        return self.state(run)

    def reach(self, run: str, number: int) -> None:
        """Wait until a round of a run is complete."""
        self.until(lambda: (self.state(run).round or 0) >= number or self.state(run).status in ENDED, f"round {number}")
        assert self.state(run).status != "failed", self.state(run).reason

    def run_folder(self, run: str) -> Path:
        """Where a run's record lies."""
        return self.home / "runs" / file_name(run)

    def children(self, module: str | None = None) -> list[int]:
        """Return the ids of the server's processes that run a module, by default of all that it has."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                named = b"-m" in words if module is None else module.encode() in words
                if named and str(self.home).encode() in words:
                    found.append(int(entry.name))
        return found

    def kill(self, module: str) -> int:
        """Kill the process that runs a module; return its id."""
        (process,) = self.children(module)
        os.kill(process, signal.SIGKILL)
        return process

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}\n{self.logs()}"
            time.sleep(0.05)

    def logs(self) -> str:
        """Return the ends of all logs, for failures."""
        files = [*self.folder.glob("*.out"), *self.home.glob("logs/*"), *self.home.glob("jobs/*/worker.*")]
        return "\n".join(f"== {file}\n{file.read_text(errors='replace')[-3000:]}" for file in files)

    def close(self) -> None:
        """Kill every process."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        # what the server started dies with it; the kernel sees to that, and we see that it did
        self.until(lambda: not self.children("astrofed.server.service.link_app"), "the link died with the server")

    def spawn(self, command: list[str], name: str) -> subprocess.Popen[bytes]:
        """Start a process that is killed at the end."""
        with (self.folder / f"{name}.out").open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        self._processes.append(process)
        return process


_POLICY = {  # what an operator edits in the policy that `client init` writes
    "tasks = []": 'tasks = ["planets"]',
    "models = []": 'models = ["mlp"]',
    'privacy = "required"': 'privacy = "optional"',
    "epsilon = 1.0": "epsilon = 8.0",
    "delta = 1e-6": "delta = 1e-5",
    "max_rounds = 50": "max_rounds = 100000",
    "metrics = []": 'metrics = ["*"]',
    "digits = 2": "digits = 17",
    "statistics = []": 'statistics = ["*"]',
}


def _astrofed(*arguments: str | Path) -> str:
    done = subprocess.run([sys.executable, "-m", "astrofed.cli", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


class SiteHomes:
    """Sites' homes beside a server, and the processes that serve them."""

    def __init__(self, deployment: Any) -> None:
        self.deployment, self.folder = deployment, deployment.folder / "homes"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.folder.mkdir()

    def set_up_by_commands(self, name: str) -> None:
        home, welcome = self.folder / name, self.folder / f"{name}.welcome.json"
        data = f"planets=bundled:planets/{name}"
        said_by_site = _astrofed(
            "client", "init", home, "--name", name, "--contact", "test@example.org", "--data", data
        )
        said = _astrofed("server", "enroll", home / "request.json", "--home", self.deployment.home, "--out", welcome)
        own, plans = re.findall(r"(?:[0-9a-f]{4} ){7}[0-9a-f]{4}", said)  # what coordinator and site read to each other
        assert own in said_by_site
        _astrofed("client", "join", welcome, home, "--fingerprint", plans)
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
        for old, new in _POLICY.items():
            assert old in text, old
            text = text.replace(old, new)
        policy.write_text(text)

    def start(self, name: str, *within: str) -> None:
        """Start a site's client, with a command before its own."""
        with (self.deployment.folder / f"{name}.out").open("ab") as out:
            command = [*within, sys.executable, "-m", "astrofed.cli", "client", "start", str(self.folder / name)]
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
        found: dict[str, Any] = json.loads(_astrofed("client", "ledger", self.folder / name, "--json"))
        return found

    def set_up_all(self, *names: str) -> None:
        """Make homes for sites, and start the server and their clients."""
        for name in names:
            self.set_up(name)
        self.deployment.start()
        for name in names:
            self.start(name)

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A server's folder without processes; those that a test starts are killed at the module's end."""
    made = Deployment(tmp_path_factory.mktemp("d"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def server_in() -> type[Deployment]:
    """Makes a server's folder in another one, with other settings."""
    return Deployment


@pytest.fixture(scope="module")
def site_homes(deployment: Deployment) -> Iterator[SiteHomes]:
    """No homes yet; clients that a test starts are killed at the module's end."""
    made = SiteHomes(deployment)
    yield made
    made.close()


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A running server with short time limits, low rates and small bodies; sites are enrolled, none is connected."""
    limits = {"header_timeout_s": 2.0, "request_timeout_s": 2.0, "max_body_mb": 6, "node_requests_per_s": 25.0}
    made = Deployment(tmp_path_factory.mktemp("s"), **limits)
    made.enroll("tess", "k2", "keck")
    made.start()
    yield made
    made.close()


@pytest.fixture(scope="module")
def small_replies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A running server that takes replies of 8 MiB; sites are enrolled, none is connected."""
    made = Deployment(tmp_path_factory.mktemp("r"), max_reply_mb=8)
    made.enroll("tess", "k2", "revoked")
    made.start()
    yield made
    made.close()


@pytest.fixture(scope="module")
def planets() -> dict[str, Any]:
    """A plan of four observatories by the names of their sites; a round takes a fraction of a second."""
    return {
        "name": "small",
        "seed": 3,
        "rounds": 3,
        "task": {"name": "planets"},
        "model": {"name": "mlp"},
        "training": {"batch_size": 32, "learning_rate": 0.003, "optimizer": "adam"},
        "strategy": {"name": "FedAvg"},
        "engine": {"threads": 1},
        "participants": [{"name": name, "data": "planets"} for name in ("tess", "k2", "la_silla", "keck")],
    }


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], str]:
    """Return the digest of the model that the embedded engine makes of a plan, in a process of its own."""

    def digest(plan: dict[str, Any]) -> str:
        folder = tmp_path_factory.mktemp("embedded")
        local = [{**each, "data": f"bundled:planets/{each['name']}"} for each in plan["participants"]]
        (folder / "plan.toml").write_text(tomli_w.dumps({**plan, "participants": local}))
        command = [sys.executable, "-m", "astrofed.cli", "simulate", str(folder / "plan.toml"), "--json"]
        done = subprocess.run([*command, "--out", str(folder / "run")], capture_output=True, text=True, check=True)
        return _digest(Path(json.loads(done.stdout)["model"]))

    return digest


def _digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()
