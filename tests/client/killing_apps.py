"""A program of the tests: sites that train privately on real data, each a process of its own, are killed at any moment.

`python killing_apps.py FOLDER COUNT` kills COUNT of them, one after the other on each of two homes. Each runs the
client app with a policy, as an institution's would: plan in, data read, rounds trained and charged, replies out. It
writes into a trail, flushed, what the coordinator was told. After every death the ledger has to verify and to agree
with the trail.
Processes are forked from this one, which has imported everything and opened nothing.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.dataset  # noqa: F401 - imported here and not in each process
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from astrofed.client.app import build_client_app
from astrofed.client.policy import Policy
from astrofed.client.privacy.dpsgd import sampling
from astrofed.client.privacy.ledger import Ledger
from astrofed.client.site import Site
from astrofed.shared import registry
from astrofed.shared.arrays import from_state_dict, to_numpy
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import Plan, load_plan
from astrofed.shared.privacy.accounting import epsilon
from astrofed.simulations.bundled import resolve_bundled
from astrofed.simulations.embedded import EmbeddedGrid

DELTA, NOISE = 1e-5, 0.2  # so little noise that no accountant needs long
ROUNDS, UNITS = 10**4, 431  # units: that K2 trains on


def the_plan() -> Plan:
    """Return what the coordinator asks for."""
    return load_plan(
        {
            "name": "trial",
            "rounds": ROUNDS,
            "task": "planets",
            "model": {"name": "mlp", "hidden": [16]},
            "training": {"optimizer": "sgd", "learning_rate": 0.05, "batch_size": 150},
            "privacy": {"unit": "planet", "noise_multiplier": NOISE, "delta": DELTA},
            "engine": {"threads": 1},
            "participants": [{"name": "K2", "data": "bundled:planets/k2"}],
        }
    )


def the_site(home: Path) -> Site:
    """Return the site, with a policy that allows the plan and all the epsilon that the test can spend."""
    rules = {"epsilon": 1e12, "delta": DELTA, "max_rounds": ROUNDS, "metrics": ["loss"]}
    names = {"modes": ["federated"], "tasks": ["planets"], "models": ["mlp"]}
    policy = Policy.parse({**names, "data": rules}, home / "policy.toml")
    return Site("K2", resolve_bundled("planets/k2"), home=home, policy=policy)


def client(home: Path, trail: Path, say: Callable[[str], None]) -> None:
    """Train round after round as long as it is let."""
    site, plan = the_site(home), the_plan()
    grid = EmbeddedGrid(build_client_app(lambda _context, _plan: site), 1)
    (node,) = grid.get_node_ids()
    arrays, text = from_state_dict(build_model(plan).state_dict()), plan.to_json()
    descriptor = os.open(trail, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    say("ready")
    for number in range(1, ROUNDS):
        content = RecordDict({"config": ConfigRecord({"plan": text, "server-round": number}), "arrays": arrays})
        (reply,) = grid.send_and_receive([Message(content=content, dst_node_id=node, message_type="train")])
        if reply.has_error():
            raise AssertionError(reply.error.reason)
        arrays = reply.content.array_records["arrays"]
        assert all(array.size for array in to_numpy(arrays).values())
        spent = reply.content.metric_records["metrics"]["epsilon"]
        os.write(descriptor, (json.dumps([number, spent]) + "\n").encode())
        os.fsync(descriptor)
        say("told")


def start(home: Path, trail: Path) -> tuple[int, Any]:
    """Return the number of a new process at work, and a file from which its lines can be read."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            client(home, trail, lambda word: os.write(writing, f"{word}\n".encode()) and None)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent has to hear of it
            os.write(writing, f"failed: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(1)
    os.close(writing)
    return child, os.fdopen(reading)


@dataclass(frozen=True)
class State:
    """How many rounds there are."""

    told: int = 0
    settled: int = 0
    reserved: int = 0


def look(home: Path, trail: Path, steps: int) -> State:
    """Return what ledger and trail say, after checking that the ledger verifies and holds all epsilon that was told."""
    told = [json.loads(line)[1] for line in trail.read_text().splitlines()] if trail.exists() else []
    book = Ledger(home).book()  # raises where the ledger doesn't verify
    if not book.datasets:
        assert not told, "what was told is not in the ledger"
        return State()
    (dataset,) = book.datasets
    rows = book.spending(dataset)
    kinds = {(row.steps, row.noise_multiplier, row.sample_rate) for row in rows}
    assert len(kinds) == 1 and rows[0].steps == steps, "an open round doesn't count whole"
    assert book.last == len(rows) + len(book.settled) and not book.accepted
    assert told == sorted(told), "epsilon became less"
    assert sum(book.totals.values()) == steps * len(rows)
    if told:
        together = epsilon([row.event for row in rows], DELTA)
        assert told[-1] <= together, "an epsilon that was told is no longer spent"
    return State(len(told), len(book.settled), len(rows))


def where(before: State, after: State) -> str:
    """Say what a process was at when it died, after checking that it lost nothing and counted nothing twice."""
    told, settled = after.told - before.told, after.settled - before.settled
    reserved = after.reserved - before.reserved
    assert told <= settled <= reserved <= told + 1, f"{told} rounds were told, {settled} settled, {reserved} reserved"
    if settled < reserved:
        return "reserved and not settled"
    return "settled and not told" if told < settled else "between rounds" if told else "before its first round"


def kill(folder: Path, count: int, seed: int) -> tuple[dict[str, int], State]:
    """Kill processes on one home at random moments: after some rounds and a random part of another."""
    folder.mkdir()
    home, trail, seen, state = folder / "home", folder / "trail", dict[str, int](), State()
    draws, pause, length = random.Random(seed), threading.Event(), 0.05
    _, steps = sampling(the_plan().training, UNITS)
    for _ in range(count):
        child, lines = start(home, trail)
        with lines:
            try:
                for _ in range(draws.choice((0, 1, 1, 1, 2, 3))):  # "ready" and rounds
                    began, word = time.monotonic(), lines.readline().strip()
                    assert word in ("ready", "told"), word or "it ended by itself"
                    length = time.monotonic() - began if word == "told" else length
                pause.wait(draws.uniform(0, 1.2 * min(length, 1.0)))
            finally:
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        before, state = state, look(home, trail, steps)
        at = where(before, state)
        seen[at] = seen.get(at, 0) + 1
    return seen, state


def main(folder: Path, count: int) -> dict[str, Any]:
    """Kill half of them on one home and half on another, at the same time, and return what was seen on both."""
    torch.set_num_threads(1)
    registry.get("tasks", "planets"), registry.get("models", "mlp")  # imported here, as above
    halves = [(folder / "one", count // 2, 5), (folder / "other", count - count // 2, 6)]
    with multiprocessing.get_context("fork").Pool(len(halves)) as pool:
        found = pool.starmap(kill, halves, chunksize=1)
    seen, told = Counter[str](), 0
    for at, state in found:
        seen.update(at)
        told += state.told
    return {"kills": seen.total(), "at": dict(seen), "told": told}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
