"""Faults that strike in the middle of a blob, in runs with real processes: who is killed and what is full or changed
there costs no run its model, or one reply whose reason stands in the record.

One site halts at a certain byte (`halting_site.py`); what is to go wrong is done meanwhile, much of it to one run, for
each takes seconds to begin. Small disks are faked by the kernel (tmpfs), which takes root; else they are left out.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from shutil import disk_usage
from typing import Any

import pytest

from astrofed.server.record import read_record, verify_run
from astrofed.server.service.jobs import Jobs
from astrofed.shared.blobs import STEP, UNFINISHED
from astrofed.shared.packing import INLINE

pytestmark = pytest.mark.slow
DISK_MB, SMALL_DISK_MB, ROUNDS = 48, 2, 2
WIDTH = 1024  # of two layers, so that a model has just more than travels within a message
assert 4 * WIDTH**2 >= INLINE


def _mounted(folder: Path, megabytes: int) -> str:
    """Give a folder a disk of its own; return why it has none, or ""."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return "mount as root is not to be had here"
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, text=True).stderr.strip()


class Halting:
    """Two sites, of which the second can be halted in the middle of a blob; a third has a small disk."""

    def __init__(self, deployment: Any, site_homes: Any) -> None:
        self.deployment, self.homes, self.file = deployment, site_homes, deployment.folder / "halt"
        self.blobs = deployment.home / "link" / "blobs"
        self.process = 0
        self.no_disk = _mounted(self.blobs, DISK_MB)
        for name in ("tess", "k2", "keck"):
            site_homes.set_up(name)
        self.spool, self.small = (site_homes.folder / name / "spool" / "blobs" for name in ("k2", "keck"))
        self.no_small_disk = _mounted(self.small, SMALL_DISK_MB)
        deployment.start()
        site_homes.start("tess")
        self.start()

    def start(self) -> None:
        self.homes.start("k2", sys.executable, str(Path(__file__).with_name("halting_site.py")), str(self.file))

    def halt_next(self, way: str) -> None:
        """Let the site halt within the next blob that goes this way."""
        self.file.write_text(way)

    def halted(self) -> None:
        """Wait until the site, or its executor, has halted."""
        self.process = 0
        self.deployment.until(lambda: self.file.read_text().isdecimal(), "the site is about to halt")
        self.process = int(self.file.read_text())
        stat = Path(f"/proc/{self.process}/stat")
        self.deployment.until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the site has halted")

    def go_on(self) -> None:
        """Let it go on."""
        os.kill(self.process, signal.SIGCONT)
        self.process = 0

    def kill(self) -> None:
        """Kill what has halted."""
        os.kill(self.process, signal.SIGKILL)
        self.process = 0

    def kill_server(self) -> None:
        self.deployment.server.send_signal(signal.SIGKILL)
        self.deployment.server.wait()
        self.deployment.until(lambda: not self.deployment.children(), "nobody outlives the server")

    def ended(self, run: str, status: str = "done") -> Any:
        """Wait until a run has ended, and return its record; nothing that was on its way is left behind."""
        state = self.deployment.finish(run)
        assert state.status == status, state.reason + self.deployment.logs() + self.homes.log("k2")
        assert [path for path in self.blobs.iterdir() if path.name != "filler"] == []
        if status == "done":
            verify_run(self.deployment.run_folder(run))
        return state

    def rounds(self, run: str) -> list[Any]:
        return [entry for entry in read_record(self.deployment.run_folder(run))[1] if entry.round]

    def close(self) -> None:
        if self.process:  # of a test that failed; an executor that has halted would outlive its node
            self.kill()
        self.homes.close()
        self.deployment.close()
        for why, folder in ((self.no_disk, self.blobs), (self.no_small_disk, self.small)):
            if not why:
                subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def at_fault(deployment: Any, site_homes: Any) -> Iterator[Halting]:
    made = Halting(deployment, site_homes)
    yield made
    made.close()


@pytest.fixture(scope="module")
def plan(planets: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    def made(name: str, *others: str, **changes: Any) -> dict[str, Any]:
        sites = [{"name": each, "data": "planets"} for each in ("tess", *(others or ("k2",)))]
        large = {"name": "mlp", "hidden": [WIDTH, WIDTH]}
        return {**planets, "name": name, "model": large, "rounds": ROUNDS, "participants": sites, **changes}

    return made


@pytest.fixture(scope="module")
def model(plan: Callable[..., dict[str, Any]], embedded: Callable[[dict[str, Any]], str]) -> str:
    """The digest of the model that those runs make when nothing goes wrong."""
    return embedded(plan("undisturbed"))


def parts(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.glob("*.part")]


def unfinished(folder: Path) -> list[Path]:
    """Return what is being written, or was when its writer was killed."""
    return list(folder.glob(f".*{UNFINISHED}"))


def flip(path: Path, at: int) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        changed = bytes([file.read(1)[0] ^ 1])
        file.seek(at)
        file.write(changed)


def test_whatever_strikes_in_the_middle_of_a_blob_the_run_ends_with_the_same_model(
    at_fault: Halting, plan: Callable[..., dict[str, Any]], model: str
) -> None:
    server, run = at_fault.deployment, "struck"
    if at_fault.no_disk:
        at_fault.halt_next("send")
        server.submit(plan(run))
    else:  # the server has no room for the model that it is to send
        filler = at_fault.deployment.fill(at_fault.blobs, leave=2 * STEP)
        server.submit(plan(run))
        reason = at_fault.ended(run, "failed").reason
        assert f"{at_fault.blobs} can't be written: No space left" in reason and "free space" in reason
        filler.unlink()
        at_fault.halt_next("send")
        Jobs(server.home / "jobs").resume(run)
    at_fault.halted()
    server.until(lambda: any(parts(at_fault.blobs)), "some of the reply has come")
    at_fault.homes.kill("k2")
    at_fault.halt_next("send")
    at_fault.start()
    at_fault.halted()  # in the same reply
    if not at_fault.no_disk:
        filler = at_fault.deployment.fill(at_fault.blobs)
        at_fault.go_on()
        server.until(lambda: "its disk is full (HTTP 507)" in at_fault.homes.log("k2"), "the site is told")
        assert "has no room for a reply's 4," in at_fault.homes.log("k2")
        assert "a blob can't be written: No space left" in (server.home / "logs" / "gateway.log").read_text()
        assert server.state(run).status == "running"  # there is no deadline: it waits
        at_fault.halt_next("send")
        filler.unlink()
        at_fault.halted()  # in the same reply
    at_fault.kill_server()
    at_fault.halt_next("receive")
    server.start()
    at_fault.go_on()
    at_fault.halted()
    at_fault.kill_server()
    assert parts(at_fault.spool) == [2 * STEP]
    server.start()
    at_fault.go_on()
    at_fault.ended(run)
    entries = at_fault.rounds(run)
    assert [entry.round for entry in entries] == list(range(1, ROUNDS + 1))
    assert all(entry.accepted == ("tess", "k2") and not entry.quarantined for entry in entries), entries
    path = server.run_folder(run) / "model.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == model


def test_a_reply_that_changed_on_its_sites_disk_and_a_site_without_room_are_in_the_record_and_not_in_the_model(
    at_fault: Halting, plan: Callable[..., dict[str, Any]]
) -> None:
    others = ["k2"] if at_fault.no_small_disk else ["k2", "keck"]
    for name in others[1:]:
        at_fault.homes.start(name)
    at_fault.halt_next("send")
    at_fault.deployment.submit(plan("changed", *others, rounds=1))
    at_fault.halted()
    for path in at_fault.spool.iterdir():  # the question, done with, and the reply
        flip(path, 3 * STEP)
    at_fault.go_on()
    at_fault.ended("changed")
    (entry,) = at_fault.rounds("changed")
    assert entry.accepted == ("tess",)
    reasons = {item.participant: item.reason for item in entry.quarantined}
    assert "has other bytes on this disk than its name says" in reasons["k2"], reasons
    if at_fault.no_small_disk:
        return
    assert f"{at_fault.small} has no room for a message's 4," in reasons["keck"], reasons
    said = [line for line in at_fault.homes.log("keck").splitlines() if "has no room" in line]
    assert f"{at_fault.small}" in said[0] and "free so much there" in said[0]
    assert list(at_fault.small.iterdir()) == []


def test_an_executor_that_is_killed_while_it_writes_a_reply_costs_that_reply_and_leaves_nothing_behind(
    at_fault: Halting, plan: Callable[..., dict[str, Any]]
) -> None:
    at_fault.halt_next("write")
    at_fault.deployment.submit(plan("killed"))
    at_fault.halted()
    (orphan,) = unfinished(at_fault.spool)
    at_fault.homes.kill("k2")  # with its executor, as by a machine that has no memory left
    at_fault.kill()
    at_fault.halt_next("write")
    at_fault.start()
    at_fault.halted()  # in the same reply, which is made anew
    (another,) = unfinished(at_fault.spool)
    assert another != orphan
    at_fault.kill()
    at_fault.ended("killed")
    first, *others = at_fault.rounds("killed")
    assert first.accepted == ("tess",)
    assert {item.participant: item.reason for item in first.quarantined} == {
        "k2": "k2: the executor was killed while it worked (SIGKILL)"
    }
    assert [entry.accepted for entry in others] == [("tess", "k2")] * (ROUNDS - 1)
    assert "train, round 1 of 2: failed; the executor was killed while it worked" in at_fault.homes.log("k2")
    assert not unfinished(at_fault.spool)


def test_a_disk_that_is_full_when_the_next_broadcast_is_written_stops_the_run_which_is_resumed_to_its_end(
    at_fault: Halting, plan: Callable[..., dict[str, Any]], model: str
) -> None:
    if at_fault.no_disk:
        pytest.skip(at_fault.no_disk)
    run = "filled"
    at_fault.halt_next("send")
    at_fault.deployment.submit(plan(run))
    at_fault.halted()
    at_fault.halt_next("write")
    at_fault.go_on()
    at_fault.halted()  # in the next round
    two = 2 * 4 * WIDTH**2  # a question and a reply, which the worker has open, whether or not it still has a name
    at_fault.deployment.until(lambda: disk_usage(at_fault.blobs).used >= two, "the other site's reply has come")
    with ExitStack() as held:  # so that deleting the question makes no room
        for path in at_fault.blobs.iterdir():
            held.enter_context(path.open("rb"))
        filler = at_fault.deployment.fill(at_fault.blobs, leave=6 * STEP)  # for this reply, and not for what follows
        at_fault.go_on()
        reason = at_fault.ended(run, "failed").reason
    assert f"{at_fault.blobs} can't be written: No space left" in reason and "free space" in reason
    assert [entry.round for entry in at_fault.rounds(run)] == [1]
    verify_run(at_fault.deployment.run_folder(run))
    filler.unlink()
    Jobs(at_fault.deployment.home / "jobs").resume(run)
    at_fault.deployment.until(lambda: at_fault.deployment.state(run).status != "failed", "it is taken up again")
    at_fault.ended(run)
    entries = at_fault.rounds(run)
    assert [entry.round for entry in entries] == list(range(1, ROUNDS + 1))
    assert all(entry.accepted == ("tess", "k2") and not entry.quarantined for entry in entries), entries
    path = at_fault.deployment.run_folder(run) / "model.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == model
