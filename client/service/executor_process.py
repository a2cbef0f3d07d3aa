"""The executor's own process: torch imported once, and the installed client app, which answers what the node gives it.

It never speaks to the network and runs no code that a run brings along; plug-ins are the files that the site's policy
names. What it writes (standard output and error, warnings of libraries) lies in `logs/executor.log` in the home, and
goes nowhere else. The node's own log has no texts of errors that are not astrofed's own: they might hold data.
"""

import os
import queue
import resource
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from astrofed.client.service import frames
from astrofed.client.service.home import Home
from astrofed.client.service.sealed import Sealed
from astrofed.shared.blobs import Blobs
from astrofed.shared.errors import AstrofedError
from astrofed.shared.memory import allow


def main() -> None:
    """Answer questions until the node closes the connection or is gone."""
    home, channel = Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the data
    waiting: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(channel, waiting), daemon=True).start()
    try:
        answer = _prepare(home)
    except Exception as error:  # noqa: BLE001 - whatever it is, the node must be told
        _write_trace(error)
        frames.send(channel, "E", _told("the executor can't start", error).encode())
        return
    frames.send(channel, "+")
    while True:
        kind, pieces = answer(waiting.get())
        frames.send(channel, kind, *pieces)


def _listen(channel: socket.socket, waiting: "queue.Queue[bytes]") -> None:
    """Take in questions; when the node is gone, so is this process, whatever it is doing."""
    try:
        while True:
            waiting.put(frames.receive(channel)[1])
    except (OSError, frames.Hung):
        os._exit(0)


def _prepare(home: Path) -> Callable[[bytes], tuple[str, list[bytes]]]:
    """Return what answers a question: the kind of frame, and its pieces."""
    import torch  # noqa: F401 - imported while nobody waits for it

    from astrofed.client.app import build_client_app
    from astrofed.client.service.messages import open_question, seal_reply

    site = Home.open(home)
    site.load_plugins()
    if site.file.limits.memory_gb is not None:
        allow(int(site.file.limits.memory_gb * 1e9))
    app, blobs = build_client_app(site.open_site), Blobs(site.blobs)

    def answer(data: bytes) -> tuple[str, list[bytes]]:
        try:
            question = Sealed.from_bytes(data[8:])
            message, context, form = open_question(question, int.from_bytes(data[:8]), blobs)
            return "R", seal_reply(app(message, context), form, blobs).pieces()
        except Exception as error:  # noqa: BLE001 - an error becomes an error reply, made by the node
            _write_trace(error)
            return "E", [_told("the site could not answer", error).encode()]

    return answer


def _told(what: str, error: Exception) -> str:
    """Return what the coordinator may know of an error: its text only where it is one of ours, made to be told."""
    if isinstance(error, AstrofedError):
        return f"{what}: {error}"
    return f"{what}: {type(error).__name__}; its log says where"


def _write_trace(error: Exception) -> None:
    frames_ = traceback.extract_tb(error.__traceback__)
    lines = [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames_]
    text = str(error) if isinstance(error, AstrofedError) else "(text left out: it may hold data)"
    sys.stderr.write("\n  ".join([f"{type(error).__name__}: {text}", *lines]) + "\n")


if __name__ == "__main__":
    main()
