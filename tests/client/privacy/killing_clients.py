"""A program of the tests: clients that spend from a ledger, each a process of its own, are killed; nothing may be lost.

`python killing_clients.py moments FOLDER COUNT` kills COUNT clients, one after the other on one ledger, at random
moments. `python killing_clients.py statements FOLDER` kills a client on a new ledger before each statement that the
ledger executes, from the making of its file on. A client writes into a trail of its own, flushed, what it was told
and what it is about to say; after every death the ledger must agree with the trail. Clients are forked from this light
process, so that starting one takes milliseconds.
"""

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from astrofed.client.privacy.ledger import Ledger
from astrofed.shared.privacy.events import Event, Expense

EXPENSE = Expense("trial", 1, "federated", "f" * 64, "planet", 200, 1.0, Event(1.0, 0.1, 20))
DELTA = 1e-5


def client(home: Path, trail: Path, rounds: int) -> None:
    """Spend round after round, saying in the trail what the ledger has confirmed."""
    ledger, draws = Ledger(home), random.Random(os.getpid())
    descriptor = os.open(trail, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(*words: object) -> None:
        os.write(descriptor, (json.dumps(words) + "\n").encode())
        os.fsync(descriptor)

    for _ in range(rounds):
        number = ledger.reserve(EXPENSE, None, DELTA)
        say("reserved", number)
        steps = draws.randint(0, 20)
        say("settles", number, steps)
        ledger.settle(number, EXPENSE, steps)
        say("settled", number, steps)


def start(work: Callable[[], None]) -> int:
    """Return the number of a new process that does the work."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def killed(child: int) -> bool:
    """Wait for a client's end and say whether it was killed."""
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def agree(home: Path, trail: Path, deaths: int) -> str:
    """Check the ledger against the trail of clients, `deaths` of which were killed; return what the last one was at."""
    lines = [json.loads(line) for line in trail.read_text().splitlines()] if trail.exists() else []
    book = Ledger(home).book()  # raises where the ledger doesn't verify
    rows = {row.id: row for row in book.spending(EXPENSE.dataset)}
    told = [number for word, number, *_ in lines if word == "reserved"]
    meant = {number: steps[0] for word, number, *steps in lines if word == "settles"}
    done = {number: steps[0] for word, number, *steps in lines if word == "settled"}
    assert set(told) <= set(rows) and len(set(told)) == len(told), "a reservation was lost"
    assert len(rows) <= len(told) + deaths, "something was counted that nobody reserved"
    assert done.items() <= book.settled.items() <= meant.items(), "settled for what no client said"
    for number, row in rows.items():
        assert row.steps == book.settled.get(number, 20), "an open reservation counts whole"
    assert sum(book.totals.values()) == sum(row.steps for row in rows.values())
    if book.last in rows and book.last not in told:
        return "reserved and not told"
    if book.last in rows or not lines or lines[-1][0] != "settles":
        return str(lines[-1][0]) if lines else "nothing"
    return "settled and not told"


def moments(folder: Path, count: int) -> dict[str, Any]:
    """Kill clients at random moments of their work."""
    home, trail, seen, deaths = folder / "home", folder / "trail", dict[str, int](), 0
    draws, pause = random.Random(7), threading.Event()
    while deaths < count:
        child = start(lambda: client(home, trail, 10**6))
        pause.wait(draws.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        assert killed(child)
        deaths += 1
        at = agree(home, trail, deaths)
        seen[at] = seen.get(at, 0) + 1
    return {"kills": deaths, "at": seen, "rows": Ledger(home).book().last}


def statements(folder: Path) -> dict[str, Any]:
    """Kill a client before the first, second, … statement of the ledger's own code, until one gets through."""
    seen: dict[str, int] = {}
    for number in range(1, 10**5):
        home, trail = folder / f"{number}" / "home", folder / f"{number}" / "trail"
        trail.parent.mkdir()

        def work(home: Path = home, trail: Path = trail, number: int = number) -> None:
            sys.settrace(_killer(number))
            client(home, trail, 1)

        if not killed(start(work)):
            agree(home, trail, 0)
            return {"kills": number - 1, "at": seen}
        at = agree(home, trail, 1)
        seen[at] = seen.get(at, 0) + 1
        client(home, trail, 1)  # whatever was left behind, the next client can go on
        agree(home, trail, 1)
    raise AssertionError("no client got through")


def _killer(number: int) -> Any:
    left = number

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if not Path(frame.f_code.co_filename).name.startswith("ledger"):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    result = moments(where, int(sys.argv[3])) if what == "moments" else statements(where)
    sys.stdout.write(json.dumps(result) + "\n")
