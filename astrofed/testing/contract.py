"""What the contract tests share: how a broken contract is told, and a short run of a plan."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from astrofed.server.app import Silent
from astrofed.server.federation import Interrupted
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Plan, load_plan
from astrofed.shared.record import Round
from astrofed.simulations.result import RunResult
from astrofed.simulations.simulate import simulate


class ContractBroken(UserMistake):
    """A plug-in does not keep what its kind promises."""


class NeedsPlan(UserMistake):
    """A plug-in can only be tested in a plan that names it."""


def expect(holds: bool, promise: str, seen: str) -> str:
    """Return the promise, or raise that it is broken.

    Raises:
        ContractBroken: it does not hold.
    """
    if not holds:
        raise ContractBroken(f"broken: {promise}; seen: {seen}")
    return promise


def shortened(plan: Plan, **changes: Any) -> Plan:
    """Return the plan with two rounds of few steps on the embedded engine, one client after the other, no attacks."""
    data = plan.to_dict()
    data |= {"rounds": 2, "evaluate_every": 1, "engine": {"name": "embedded", "threads": 1}}
    data["training"] = {**data["training"], "epochs": 1, "max_steps": min(3, data["training"].get("max_steps", 3))}
    data["participants"] = [{k: v for k, v in p.items() if k != "attack"} for p in data["participants"]]
    return load_plan(data | changes)


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder for runs that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="astrofed-contract-") as folder:
        yield Path(folder)


class _StopAfterOne(Silent):
    """An observer that ends a run after its first round."""

    def __init__(self) -> None:
        self.done = 0

    def round_done(self, entry: Round) -> None:
        self.done = entry.round

    def should_stop(self) -> bool:
        return self.done >= 1


def run(plan: Plan, out: Path) -> RunResult:
    """Run a plan to its end."""
    return simulate(plan, out=out)


def run_in_two_parts(plan: Plan, out: Path) -> RunResult:
    """Run a plan's first round, stop, and go on from its record."""
    try:
        simulate(plan, out=out, observer=_StopAfterOne())
    except Interrupted:
        return simulate(plan, out=out, resume=True)
    raise ContractBroken("broken: a run can be stopped after a round; seen: it went on to its end")


def finite(values: Any) -> bool:
    """Whether an array holds only finite numbers."""
    return bool(np.isfinite(np.asarray(values)).all())
