"""The executor's followers: a process for each further device of the site, which trains along with the executor.

A question that asks for training is given to all of them (`client.sharing`); the executor alone replies, and alone
writes what has to be kept. If a follower dies, fails or hangs, the executor says which and ends, and all with it: torch
can't be made to go on with those that are left. The node starts them anew.
"""

import os
import queue
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from flwr.app import ConfigRecord, Message
from torch._C._distributed_c10d import FileStore

from astrofed.client.service import frames
from astrofed.client.service.home import Home, OtherNode
from astrofed.client.sharing import Team, shared_with
from astrofed.shared import records
from astrofed.shared.errors import AstrofedError, UserMistake
from astrofed.shared.plan import plan_from_json

STEP_S = 300.0
"""How long one process waits for the others in a step."""
GRACE_S = 10.0
"""How long an executor that may wait for a dead follower has until it is ended."""
START_S = 150.0
STORE = "crew.store"  # in the home: where the processes find each other


Trouble = Callable[[str, bool], None]
"""Is told by another thread what is the matter with a follower, and whether it has ended."""


class CrewFailed(AstrofedError):
    """A follower died, failed or hung; its executor has to end. The message holds no data."""


class NotOneWord(UserMistake):
    """A path or a launcher of another machine's that its shell would take apart."""


def meet(folder: Path, device: str, rank: int, size: int) -> Team:
    """Join the other processes of a home's crew; `rank` 0 has removed the old store before any other was started."""
    if device != "cpu":
        torch.cuda.set_device(device)
    store = FileStore(str(folder / STORE), size)
    backend, wait = "gloo" if device == "cpu" else "nccl", timedelta(seconds=STEP_S)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)
    return Team(rank, size)


def only_this_machine() -> None:
    """Have torch's processes listen on the loopback interface alone, which no other machine can reach."""
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    for library in ("GLOO", "NCCL"):
        if loopback is not None:
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback)


class _Follower:
    """One follower process, as the executor sees it."""

    def __init__(self, command: list[str], device: str, on_trouble: Trouble) -> None:
        self.name, self._on_trouble = device, on_trouble
        self.answers: queue.Queue[tuple[bool, str]] = queue.Queue()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._pipes = frames.Pipes(self._process.stdout.fileno(), self._process.stdin.fileno())
        threading.Thread(target=self._listen, daemon=True).start()

    def ask(self, data: bytes) -> None:
        with suppress(BrokenPipeError):  # then its end is told as well
            frames.send(self._pipes, "Q", data)

    def answer(self, wait_s: float) -> str | None:
        """Return why the follower could not do what was asked; "" if it could, None if it says nothing in that time.

        Raises:
            CrewFailed: it has ended.
        """
        try:
            ended, told = self.answers.get(timeout=wait_s)
        except queue.Empty:
            return None
        if ended:
            raise CrewFailed(told)
        return told

    def _listen(self) -> None:
        try:
            while True:
                told = frames.receive(self._pipes)[1].decode(errors="replace")
                told = told and f"the process on {self.name} failed: {told}"
                self.answers.put((False, told))
                if told:
                    threading.Thread(target=self._on_trouble, args=(told, False), daemon=True).start()
        except (OSError, frames.Hung):
            told = f"the process on {self.name} {self._obituary()}"
            self.answers.put((True, told))
            self._on_trouble(told, True)

    def _obituary(self) -> str:
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        return f"was killed ({signal.Signals(-status).name})" if status < 0 else f"ended (status {status})"


class Crew:
    """The executor's followers."""

    def __init__(self, home: Home, on_trouble: Trouble) -> None:
        """Start them; they get ready while the executor does.

        Raises:
            NotOneWord: another machine's shell would take the command apart.
        """
        places = home.file.limits.places
        self._home, self._device, self.size = home.folder.resolve(), places[0][0], len(places)
        self.sharing = False  # whether this process may wait for the others
        if not home.file.limits.nodes:
            only_this_machine()
        (self._home / STORE).unlink(missing_ok=True)
        self._followers = [
            _Follower(_command(self._home, device, rank, self.size, node), _named(device, node), on_trouble)
            for rank, (device, node) in enumerate(places)
            if rank
        ]

    def join(self) -> None:
        """Wait until all are ready, and meet them.

        Raises:
            CrewFailed: one isn't.
        """
        self._check([follower.answer(START_S) for follower in self._followers])
        self.sharing = True
        for follower in self._followers:
            follower.ask(b"")
        self._team = meet(self._home, self._device, 0, self.size)
        self.sharing = False

    def can_share(self, message: Message) -> bool:
        """Whether what a message asks is training that several devices can share: not if it is private."""
        if records.kind(message) != "train":
            return False
        try:
            config = records.held(message)["config"]
            assert isinstance(config, ConfigRecord)
            private = plan_from_json(str(config["plan"])).privacy is not None
        except Exception:  # noqa: BLE001 - whatever is wrong with it, the app will say
            return False
        if private:
            self._team.say_once(f"plans with [privacy] train on {self._device} alone")
        return not private

    def share(self, data: bytes, answer: Callable[[], Message]) -> tuple[Message, bool]:
        """Have all answer a question; return the executor's own reply, and whether the crew can go on.

        Raises:
            CrewFailed: a follower died, failed or hung.
        """
        self.sharing = True
        for follower in self._followers:
            follower.ask(data)
        with shared_with(self._team):
            reply = answer()
        alone = reply.has_error() and not self._team.lost  # its own mistake, for which others may wait in vain
        told = [follower.answer(GRACE_S if reply.has_error() else STEP_S) for follower in self._followers]
        if not alone:
            self._check(told)
        self.sharing = False
        return reply, not self._team.lost and None not in told

    def _check(self, told: list[str | None]) -> None:
        late = [follower.name for follower, each in zip(self._followers, told, strict=True) if each is None]
        if late:
            raise CrewFailed(f"the process on {', '.join(late)} does not answer any more")
        failed = [each for each in told if each]
        if failed:
            raise CrewFailed(failed[0])


def _named(device: str, node: OtherNode | None) -> str:
    return device if node is None else f"{device} of `{' '.join(node.launch)}`"


def _command(home: Path, device: str, rank: int, size: int, node: OtherNode | None) -> list[str]:
    command = [sys.executable, "-m", "astrofed.client.service.follower", str(home), device, str(rank), str(size)]
    if node is None:
        return command
    odd = [word for word in command if shlex.quote(word) != word]
    if odd:
        raise NotOneWord(
            f"limits.nodes: {odd[0]!r} would not come through `{' '.join(node.launch)}` as one word; move it to a path "
            "without spaces and special characters"
        )
    return [*node.launch, *command]
