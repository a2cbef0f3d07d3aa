"""The server's main process: starts link, gateway and workers, starts again what dies, and ends everything cleanly.

It holds no connection and no key. All it knows lies in files, so that whoever is killed at any moment, itself
included, is replaced and goes on: runs that were going on when the server died are resumed from their records.
"""

import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import httpx

from astrofed.server.service.authority import Authority
from astrofed.server.service.home import ServerHome
from astrofed.server.service.jobs import ACTIVE, RESUME, STOP, JobFolder, Jobs
from astrofed.server.service.process import child_environment
from astrofed.server.service.worker import FAILED
from astrofed.shared.errors import UserMistake
from astrofed.shared.files import CannotWrite

TICK_S = 0.25
GRACE_S = 10.0  # for a child to end when asked
RETRY_S = (0.2, 1.0, 5.0, 15.0)  # before a child is started again, by how often it died in a row
STEADY_S = 30.0  # a child that lived so long has not died in a row
MAX_CRASHES = 3  # of a run's worker without a round between them
log = logging.getLogger("astrofed.server")


class AlreadyRunning(UserMistake):
    """Another server process works in this folder."""


@dataclass
class Child:
    """A process that should be there."""

    name: str
    module: str
    output: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    restarts: int = 0
    next_start: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether it lives."""
        return self.process is not None and self.process.poll() is None


@dataclass
class Supervisor:
    """Looks after the service in a server's folder; `say` tells people what happens."""

    home: ServerHome
    say: Callable[[str], None]
    children: list[Child] = field(default_factory=list)
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _ending: bool = False
    _trouble: str = ""

    def run(self, each_tick: Callable[["Supervisor"], None] = lambda _: None) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            AlreadyRunning: another process serves this folder.
            NoServer, AuthorityUnusable: the folder is not as it should be.
        """
        settings = self.home.settings()
        Authority(self.home.authority).tls_context()  # a mistake is found before anything starts
        lock = _lock(self.home.lock)
        try:
            self.children = [
                Child("link", "astrofed.server.service.link_app", self.home.logs / "link.out"),
                Child("gateway", "astrofed.server.service.gateway_server", self.home.logs / "gateway.out"),
            ]
            before = {each: signal.signal(each, self._end) for each in (signal.SIGTERM, signal.SIGINT)}
            try:
                self._take_up()
                told = False
                while not self._ending:
                    self._look_after_all(settings.runs_at_once)
                    if not told and self.ready():
                        told = True
                        self.say(f"ready: sites reach it at {settings.address}")
                    each_tick(self)
                    time.sleep(TICK_S)
            finally:
                self._end_all()
                for number, handler in before.items():
                    signal.signal(number, handler)
        finally:
            os.close(lock)

    def ready(self) -> bool:
        """Whether link and gateway answer."""
        return all(child.alive for child in self.children) and self._link_answers() and self._gateway_listens()

    def _link_answers(self) -> bool:
        try:
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.home.link_socket)), timeout=2.0) as client:
                return client.get("http://link/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def _gateway_listens(self) -> bool:
        try:
            return self.home.gateway_state.stat().st_mtime > self.children[1].started
        except OSError:
            return False

    def _take_up(self) -> None:
        """Put the runs that were going on back into the queue."""
        for job in Jobs(self.home.jobs).all():
            if job.state.status in ACTIVE:
                self.say(f"run {job.job.run!r} is taken up again")
                job.note(status="queued", reason="the server was restarted")

    def _look_after_all(self, at_once: int) -> None:
        """Do what is to be done now; what a full disk prevents is done as soon as there is room."""
        try:
            self._look_after_children()
            self._look_after_workers(at_once)
            self._trouble = ""
        except (CannotWrite, OSError) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.error("%s", error)
                self.say(f"{error}; it is tried again")

    def _look_after_children(self) -> None:
        now = time.time()
        for child in self.children:
            if child.alive:
                continue
            if child.process is not None and child.next_start == 0.0:
                child.deaths = 1 if now - child.started > STEADY_S else child.deaths + 1
                wait = RETRY_S[min(child.deaths, len(RETRY_S)) - 1]
                child.next_start = now + wait
                log.error("%s died with code %s; see %s", child.name, child.process.returncode, child.output)
                self.say(f"{child.name} died (code {child.process.returncode}); it is started again in {wait:g} s")
            if now >= child.next_start:
                child.restarts += child.process is not None
                child.process = self._spawn([child.module, str(self.home.folder)], child.output)
                child.started, child.next_start = time.time(), 0.0

    def _look_after_workers(self, at_once: int) -> None:
        jobs = Jobs(self.home.jobs)
        for run, process in list(self.workers.items()):
            if process.poll() is not None:
                self._ended(jobs.get(run), process.returncode)
                del self.workers[run]
        for job in jobs.all():
            run = job.job.run
            if run in self.workers:
                continue
            state = job.state
            if job.wishes(RESUME) and state.status != "queued":
                job.fulfil(RESUME)
                state = job.note(status="queued", reason="", crashes=0)
            if state.status == "queued" and job.wishes(STOP):
                job.fulfil(STOP)
                job.note(status="stopped", reason="stopped in the queue")
            elif state.status == "queued" and len(self.workers) < at_once:
                job.fulfil(RESUME)
                self._start_worker(job, at_once)

    def _start_worker(self, job: JobFolder, at_once: int) -> None:
        threads = self.home.settings().run_threads or max(1, (os.cpu_count() or 1) // at_once)
        command = ["astrofed.server.service.worker", str(self.home.folder), str(job.folder)]
        job.note(status="waiting for sites", reason="starting")
        self.workers[job.job.run] = self._spawn(command, job.folder / "worker.out", threads)
        self.say(f"run {job.job.run!r} is started")

    def _ended(self, job: JobFolder, code: int) -> None:
        state, run = job.state, job.job.run
        if state.status in ACTIVE:  # it could not say how it ended
            crashes = state.crashes + 1
            if code == FAILED:  # and could not write down why: there is no room for it, as a rule
                reason = "it could not be written on, as when a disk is full; mend that, then `astrofed server resume`"
                state = job.note(status="failed", reason=reason)
            elif crashes >= MAX_CRASHES:
                reason = f"its worker died {crashes} times without a round between (code {code}); see `server logs`"
                state = job.note(status="failed", reason=reason, crashes=crashes)
            else:
                state = job.note(status="queued", reason=f"its worker died (code {code})", crashes=crashes)
                log.error("worker of run %s died with code %s", run, code)
        if state.status == "stopped":
            job.fulfil(STOP)
        self.say(f"run {run!r} is {state.status}" + (f": {state.reason}" if state.reason else ""))

    def _spawn(self, command: list[str], output: Path, threads: int | None = None) -> subprocess.Popen[bytes]:
        with output.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=child_environment(threads),
                start_new_session=True,  # Ctrl-C reaches this process alone, which ends the others in order
            )

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self._ending = True

    def _end_all(self) -> None:
        """End workers, then gateway, then link; whoever doesn't within its time is killed."""
        self.say("ending …")
        for process in self.workers.values():
            process.kill()  # a run goes on from its record; nothing that a worker holds would be saved
            process.wait()
        for child in reversed(self.children):
            if child.process is None:
                continue
            child.process.terminate()
            try:
                child.process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()


def _lock(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise AlreadyRunning(f"a server runs in {path.parent.parent} already; stop that one first") from None
    return descriptor
