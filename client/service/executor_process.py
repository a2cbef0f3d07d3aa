"""The executor's own process: torch imported once, and the installed client app, which answers what the node gives it.

It never speaks to the network, but for followers on other machines of the site (`client.service.crew`). It runs no code
that a run brings along; plug-ins are the files that the site's policy names. What it writes (standard output and error,
warnings of libraries) lies in `logs/executor.log` in the home, and goes nowhere else. The node's own log has no texts
of errors that are not astrofed's own: they might hold data.
"""

import os
import queue
import resource
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from astrofed.client.service import frames
from astrofed.client.service.home import Home
from astrofed.client.service.sealed import Sealed
from astrofed.shared.blobs import Blobs
from astrofed.shared.errors import AstrofedError
from astrofed.shared.memory import allow

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.clientapp import ClientApp

    from astrofed.client.service.crew import Crew
    from astrofed.client.site import Site
    from astrofed.shared.plan import Plan


Answer = Callable[[bytes], tuple[str, list[bytes]]]
"""Gives the kind of frame that answers a question, and its pieces; a small letter: this process has to be replaced."""


def main() -> None:
    """Answer questions until the node closes the connection or is gone, or this process has to be replaced."""
    home, channel = Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the data
    waiting: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=listen, args=(channel, waiting), daemon=True).start()
    desk = Desk(channel)
    answer = desk.open(home)
    while True:
        desk.answer(waiting.get(), answer)


class Desk:
    """Where one question at a time is answered, unless it is taken away because a follower is in trouble."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel, self._work, self._sending, self._answered = channel, threading.Lock(), threading.Lock(), 0
        self.crew: Crew | None = None

    def open(self, home: Path) -> Answer:
        """Get ready, and tell the node; return what answers questions."""
        with self._work:
            try:
                answer = _prepare(home, self)
            except Exception as error:  # noqa: BLE001 - whatever it is, the node must be told
                write_trace(error)
                self._send("e", [told("the executor can't start", error).encode()])
            self._send("+", [])
            return answer

    def answer(self, question: bytes, answer: Answer) -> None:
        """Answer a question."""
        with self._work:
            self._send(*answer(question))

    def _send(self, kind: str, pieces: list[bytes]) -> None:
        with self._sending:
            self._answered += 1
            frames.send(self._channel, kind, *pieces)
            if kind.islower():
                os._exit(1)

    def trouble(self, reason: str, ended: bool) -> None:
        """End this process when a follower has ended, or failed in what this process may wait for in vain.

        What is being answered without the followers is answered first; what they share has some seconds to come to its
        own end.
        """
        from astrofed.client.service.crew import GRACE_S

        sharing, before = self.crew is not None and self.crew.sharing, self._answered
        sys.stderr.write(f"{reason}\n")
        if self._work.acquire(timeout=GRACE_S if sharing else -1):
            if ended:
                os._exit(1)  # nobody waits; the next question finds a new process
            self._work.release()
            return
        with self._sending:
            if self._answered == before:
                frames.send(self._channel, "e", reason.encode())
                os._exit(1)


def listen(channel: frames.Channel, waiting: "queue.Queue[bytes]") -> None:
    """Take in questions; when whoever asks them is gone, so is this process, whatever it is doing."""
    try:
        while True:
            waiting.put(frames.receive(channel)[1])
    except (OSError, frames.Hung):
        os._exit(0)


def _prepare(home: Path, desk: Desk) -> Answer:
    """Return what answers a question, with the followers ready where the site has several devices."""
    from astrofed.client.service.crew import Crew, CrewFailed
    from astrofed.client.service.messages import open_question, seal_reply

    site = Home.open(home)
    crew = desk.crew = Crew(site, desk.trouble) if len(site.file.limits.places) > 1 else None
    app, blobs = open_app(site, site.file.limits.devices[0])
    if crew is not None:
        crew.join()

    def answer(data: bytes) -> tuple[str, list[bytes]]:
        try:
            question = Sealed.from_bytes(data[8:])
            message, context, form = open_question(question, int.from_bytes(data[:8]), blobs)
            if crew is not None and crew.can_share(message):
                reply, whole = crew.share(data, lambda: app(message, context))
            else:
                reply, whole = app(message, context), True
            return "R" if whole else "r", seal_reply(reply, form, blobs).pieces()
        except CrewFailed as error:
            write_trace(error)
            return "e", [str(error).encode()]
        except Exception as error:  # noqa: BLE001 - an error becomes an error reply, made by the node
            write_trace(error)
            waited_for = crew is not None and crew.sharing
            return "e" if waited_for else "E", [told("the site could not answer", error).encode()]

    return answer


def open_app(site: Home, device: str) -> "tuple[ClientApp, Blobs]":
    """Return the client app of a site for one of its devices, and the folder of its messages' large contents.

    Raises:
        DeviceUnavailable: this machine hasn't the device.
    """
    from astrofed.client.app import build_client_app
    from astrofed.client.devices import check_devices

    check_devices([device], "limits.devices")
    site.load_plugins()
    limits = site.file.limits
    if limits.memory_gb is not None:
        allow(int(limits.memory_gb * 1e9 / len(limits.devices)))

    def open_site(context: "Context", plan: "Plan") -> "Site":
        return replace(site.open_site(context, plan), device=device)

    return build_client_app(open_site), Blobs(site.blobs)


def told(what: str, error: Exception) -> str:
    """Return what the coordinator may know of an error: its text only where it is one of ours, made to be told."""
    if isinstance(error, AstrofedError):
        return f"{what}: {error}"
    return f"{what}: {type(error).__name__}; its log says where"


def write_trace(error: Exception) -> None:
    frames_ = traceback.extract_tb(error.__traceback__)
    lines = [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames_]
    text = str(error) if isinstance(error, AstrofedError) else "(text left out: it may hold data)"
    sys.stderr.write("\n  ".join([f"{type(error).__name__}: {text}", *lines]) + "\n")


if __name__ == "__main__":
    main()
