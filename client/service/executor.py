"""The executor seen from the node: one process that stays warm, is watched at its work, and is replaced when it must.

It is a process of its own so that what kills or stalls training (memory, a bug, a limit) never takes the node along.
While it works its memory and its time are looked at five times a second; past a limit it is killed and the question
gets an error reply. Between questions it is replaced if it holds more than four fifths of the memory that it may have:
then something leaks.
"""

import contextlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from astrofed.client.service import frames
from astrofed.client.service.home import Limits
from astrofed.client.service.sealed import Sealed, Torn
from astrofed.shared.errors import AstrofedError

LOOK_S = 0.2
START_S = 180.0  # importing torch on a busy machine takes a while
PROGRAM = (sys.executable, "-m", "astrofed.client.service.executor_process")
_LEAKS = 0.8
_GB = 1e9
Check = Callable[[], None]


class TaskFailed(AstrofedError):
    """A question that the executor did not answer; the message holds no data and goes to the coordinator."""


class Stopped(AstrofedError):
    """The node is being stopped while the executor works."""


class Executor:
    """A warm process that answers one question at a time. Used by one thread."""

    def __init__(
        self, home: Path, limits: Limits, log: Callable[[str], None], program: Sequence[str] = PROGRAM
    ) -> None:
        """`log` is told when the process is ended; `program` is given the home and the number of its socket."""
        self._home, self._limits, self._log, self._program = home, limits, log, tuple(program)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._ready = False

    @property
    def pid(self) -> int | None:
        """The process's id, while there is one."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process, unless it runs; it warms up by itself."""
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        here, there = socket.socketpair()
        with there, (self._home / "logs" / "executor.log").open("ab") as out:
            self._process = subprocess.Popen(
                [*self._program, str(self._home), str(there.fileno())],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=_environment(self._limits),
                start_new_session=True,  # a Ctrl-C at the terminal is the node's to handle
            )
        _pin(self._process.pid, self._limits.threads)
        self._channel, self._ready = here, False

    def answer(self, question: Sealed, node: int, stopping: Callable[[], bool]) -> Sealed:
        """Have a question answered by the client app.

        Raises:
            TaskFailed: the process died, went past a limit (then it is replaced), or can't read the question.
            Stopped: `stopping` said so; the process is killed.
        """
        self.start()
        self._await_ready(stopping)
        deadline = time.monotonic() + self._limits.task_s

        def check() -> None:
            self._check_stop(stopping)
            if time.monotonic() > deadline:
                self._give_up(f"it took longer than the {self._limits.task_s:g} s that this site allows")
            allowed = self._limits.memory_gb
            if allowed is not None and self.memory() > allowed * _GB:
                self._give_up(f"it used more than the {allowed:g} GB of memory that this site allows")

        kind, data = self._exchange("Q", [node.to_bytes(8), *question.pieces()], check)
        if kind.islower():
            self.kill()
            self._log("the executor and its followers are replaced: " + (data.decode() if kind == "e" else "one hangs"))
        if kind.upper() != "R":
            raise TaskFailed(data.decode(errors="replace"))
        try:
            reply = Sealed.from_bytes(data)
        except Torn:
            self._give_up("the executor answered with something that is no reply")
        self._replace_if_it_leaks()
        return reply

    def kill(self) -> None:
        """End the process at once, with whatever it started; what it had reserved in the ledger stays spent."""
        process, self._process = self._process, None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def memory(self) -> int:
        """Return the bytes that the process and its followers on this machine hold in memory.

        0 where the system doesn't tell (only Linux does). What processes share counts for each.
        """
        if self._process is None:
            return 0
        pid = self._process.pid
        return sum(map(_held, [pid] if len(self._limits.devices) == 1 else _group(pid)))

    def _await_ready(self, stopping: Callable[[], bool]) -> None:
        if self._ready:
            return
        deadline = time.monotonic() + START_S

        def check() -> None:
            self._check_stop(stopping)
            if time.monotonic() > deadline:
                self._give_up(f"the executor was not ready after {START_S:g} s")

        kind, data = self._exchange(None, [], check)
        if kind != "+":
            self._give_up(data.decode(errors="replace"))
        self._ready = True

    def _exchange(self, kind: str | None, pieces: list[bytes], check: Check) -> tuple[str, bytes]:
        """Send a frame, if there is one, and return the next one of the process."""
        channel = self._channel
        assert channel is not None

        def wait() -> None:
            while not select.select([channel], [], [], LOOK_S)[0]:
                check()

        try:
            if kind is not None:
                channel.settimeout(self._limits.task_s)
                frames.send(channel, kind, *pieces)
            return frames.receive(channel, wait)
        except (OSError, frames.Hung):
            self._give_up(self._obituary())

    def _give_up(self, reason: str) -> NoReturn:
        self.kill()
        self._log(f"the executor was ended: {reason}")
        raise TaskFailed(reason)

    def _check_stop(self, stopping: Callable[[], bool]) -> None:
        if stopping():
            self.kill()
            raise Stopped("the node is being stopped")

    def _obituary(self) -> str:
        """Return how the process came to its end."""
        try:
            status = self._process.wait(timeout=5) if self._process is not None else None
        except subprocess.TimeoutExpired:
            return "the executor closed its connection"
        if status is not None and status < 0:
            return f"the executor was killed while it worked ({signal.Signals(-status).name})"
        return f"the executor ended while it worked (status {status})"

    def _replace_if_it_leaks(self) -> None:
        allowed = self._limits.memory_gb
        if allowed is not None and (held := self.memory()) > _LEAKS * allowed * _GB:
            self._log(f"the executor holds {held / _GB:.2f} GB after its work and is replaced")
            self.kill()
            self.start()


def _held(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _group(leader: int) -> list[int]:
    """Return the processes of a group, whose leader started all others."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(int(each.name)) == leader:
                found.append(int(each.name))
    return found


def _environment(limits: Limits) -> dict[str, str]:
    environment = dict(os.environ)
    environment.update(PYTHONUNBUFFERED="1", FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")
    if limits.threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
            environment[name] = str(max(1, limits.threads // len(limits.devices)))
    return environment


def _pin(pid: int, threads: int | None) -> None:
    """Keep a process to so many cores, whatever a plan says of threads; chance picks which, for other sites' sake."""
    if threads is None or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if threads < len(cores):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(pid, random.SystemRandom().sample(cores, threads))
