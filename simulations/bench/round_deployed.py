"""Our own deployment on loopback: a server and four sites, each in its own processes, over TLS with signed plans."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from astrofed.client.policy_template import write_new_policy
from astrofed.client.service.home import KEY_FILE, REQUEST_FILE, SITE_FILE, Home, site_toml
from astrofed.client.service.setup import look_at_welcome, take_welcome
from astrofed.server.app import Settings, run_federation
from astrofed.server.service.authority import Authority
from astrofed.server.service.link_grid import LinkGrid
from astrofed.server.service.setup import enroll_site, make_server, open_home
from astrofed.server.service.sites import Sites
from astrofed.shared.keys import new_node_key, write_key
from astrofed.shared.membership import OfferedDataset, make_request
from astrofed.shared.plan import Plan, load_plan
from astrofed.shared.record import Round, Start
from astrofed.shared.signed_plan import sign_plan
from astrofed.simulations.bench.free_port import free_port
from astrofed.simulations.bench.memory import peak_of

SITES = 4
PATIENCE_S = 600.0
POLICY = {  # what an operator would edit, for tasks that have nothing to hide
    "tasks = []": 'tasks = ["trivial"]',
    "models = []": 'models = ["vector"]',
    'plugins = ["astrofed"]': f'plugins = ["{Path(__file__).with_name("trivial.py")}"]',
    'privacy = "required"': 'privacy = "optional"',
    "max_rounds = 50": "max_rounds = 500",
    "metrics = []": 'metrics = ["*"]',
    "min_units = 10": "min_units = 1",
}
READY = "ready: sites reach it"
TRIVIAL = Path(__file__).with_name("trivial.py")


class Timer:
    """Notes the seconds of each round; the first stands apart, it warms up."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def started(self, plan: Plan, start: Start) -> None:
        """Nothing is noted."""

    def round_done(self, entry: Round) -> None:
        """Note how long the round took, its checkpoint included."""
        if entry.skipped is not None:
            raise RuntimeError(f"round {entry.round} of the benchmark was skipped: {entry.skipped}")
        if entry.round > 1 and entry.seconds is not None:
            self.seconds.append(entry.seconds)

    def should_stop(self) -> bool:
        """Never."""
        return False


class Deployed:
    """A server and its sites that are up; `rounds` runs a plan on them."""

    def __init__(self, folder: Path, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._folder, self._home, self._processes = folder, open_home(folder / "server"), processes

    def service_peak(self) -> int | None:
        """Return the most bytes that the server's gateway and link have held; None where the kernel does not say."""
        server = self._processes[0].pid
        try:
            children = Path(f"/proc/{server}/task/{server}/children").read_text(encoding="ascii").split()
        except OSError:
            return None
        peaks = [peak_of(int(child)) for child in children]
        return sum(peak for peak in peaks if peak is not None)

    def rounds(self, parameters: int, rounds: int) -> list[float]:
        """Return the seconds of each round but the first two (the model's evaluation, and the warming up)."""
        plan = load_plan(
            {
                "name": f"round-{parameters}",
                "rounds": rounds + 1,
                "evaluate_every": rounds + 1,
                "task": {"name": "trivial", "alike": False},
                "model": {"name": "vector", "parameters": parameters},
                "strategy": {"name": "FedAvg", "timeout_s": PATIENCE_S},
                "participants": [{"name": f"site-{each}", "data": "numbers"} for each in range(SITES)],
            }
        )
        now, text = int(time.time()), plan.to_json()
        signed = sign_plan(text, plan.name, now, now + 3600, Authority(self._home.authority).plan_key)
        known = {name: site.fingerprint for name, site in Sites(self._home.sites).all().items()}
        grid, timer = LinkGrid(self._home.link_socket, plan.name, known, lambda _: signed, self._home.blobs), Timer()
        try:
            deadline = time.monotonic() + PATIENCE_S
            while len(grid.online()) < SITES:
                if time.monotonic() > deadline or any(each.poll() is not None for each in self._processes):
                    raise RuntimeError(f"the benchmark's sites did not come within {PATIENCE_S:g} s, or were ended")
                time.sleep(0.1)
            run_federation(grid, Settings(plan, self._folder / plan.name, resume=False, quorum=SITES), timer)
        finally:
            grid.close()
        return timer.seconds[:-1]  # the last also evaluates


@contextmanager
def deployed(folder: Path) -> Iterator[Deployed]:
    """Set a deployment up below a folder, and take it down again."""
    folder.mkdir(parents=True, exist_ok=True)
    server = folder / "server"
    settings = {"name": "bench", "host": "127.0.0.1", "listen": "127.0.0.1"}
    list(make_server(server, {**settings, "port": free_port(), "admin_port": free_port()}))
    homes = [_site(folder, server, f"site-{number}", number) for number in range(SITES)]
    processes = [_start(folder, "server", "server", "start", "--home", str(server))]
    try:
        _wait_for(folder / "server.out", READY, processes[0])
        processes += [_start(folder, home.name, "client", "start", str(home)) for home in homes]
        yield Deployed(folder, processes)
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _site(folder: Path, server: Path, name: str, number: int) -> Path:
    home, key, welcome = folder / name, new_node_key(), folder / f"{name}.welcome.json"
    (home / "logs").mkdir(parents=True)
    (home / SITE_FILE).write_text(site_toml(name, "bench", {"numbers": f"add:{number}"}))
    write_key(home / KEY_FILE, key)
    write_new_policy(home / "policy.toml")
    text = (home / "policy.toml").read_text()
    for old, new in POLICY.items():
        text = text.replace(old, new)
    (home / "policy.toml").write_text(text)
    offered = OfferedDataset(name="numbers", fingerprint="0" * 64, unit="number", units=1)
    (home / REQUEST_FILE).write_text(make_request(name, "bench", [offered], key).to_json())
    list(enroll_site(server, home / REQUEST_FILE, ("default",), out=welcome))
    list(take_welcome(Home.open(home), look_at_welcome(Home.open(home), welcome)[0]))
    return home


def _start(folder: Path, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.out").open("wb") as out:
        command = [sys.executable, "-m", "astrofed.cli", *arguments]
        return subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)


def _wait_for(path: Path, words: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while words not in path.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the benchmark's server did not start:\n{path.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)
