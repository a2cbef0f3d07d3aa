"""A follower: the process of one of the site's further devices, on this machine or another one of the site.

It runs the same client app on the same questions as the executor, to train along; its replies go nowhere, and it writes
nothing into the home. Frames come by standard input and go by standard output, so that `ssh` and `srun` can start it.
"""

import os
import queue
import resource
import sys
import threading
from pathlib import Path

from astrofed.client.service import frames
from astrofed.client.service.executor_process import listen, open_app, told, write_trace
from astrofed.client.service.home import Home
from astrofed.client.service.sealed import Sealed


def main() -> None:
    """Answer questions until the executor closes standard input or is gone."""
    pipes = frames.Pipes(os.dup(0), os.dup(1))
    os.dup2(2, 1)  # what libraries print is no frame
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the data
    waiting: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=listen, args=(pipes, waiting), daemon=True).start()
    try:
        _follow(pipes, waiting, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    except Exception as error:  # noqa: BLE001 - whatever it is, the executor must be told
        write_trace(error)
        frames.send(pipes, "E", told("it can't go on", error).encode())
        os._exit(1)


def _follow(pipes: frames.Pipes, waiting: "queue.Queue[bytes]", home: Path, device: str, rank: int, size: int) -> None:
    """Get ready, meet the others, and answer one question after the other: with nothing, or with what went wrong."""
    from astrofed.client.service.crew import meet
    from astrofed.client.service.messages import open_question
    from astrofed.client.sharing import shared_with

    app, blobs = open_app(Home.open(home), device)
    frames.send(pipes, "+")
    waiting.get()
    team = meet(home, device, rank, size)
    while True:
        data = waiting.get()
        message, context, _ = open_question(Sealed.from_bytes(data[8:]), int.from_bytes(data[:8]), blobs)
        with shared_with(team):
            reply = app(message, context)
        frames.send(pipes, "D", (str(reply.error.reason) if reply.has_error() else "").encode())


if __name__ == "__main__":
    main()
