"""What a benchmark came to: rows of measured numbers, each beside the targets it is judged by; as JSON, as a table."""

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

SOFTWARE = ("astrofed", "flwr", "torch", "ray", "pfl", "pytorch-lightning", "numpy", "numba", "byzfl")


@dataclass(frozen=True)
class Target:
    """What a row should reach, and whether it does; None: it could not be evaluated here.

    What is met without a measure is better than can be measured.
    """

    target: str
    measured: float | None
    met: bool | None


MARK = {True: "met", False: "MISSED", None: "not evaluable"}


def verdict(targets: Iterable[Target]) -> bool | None:
    """Return whether all targets are met; None where none is missed but some could not be evaluated."""
    outcomes = {target.met for target in targets}
    return False if False in outcomes else (None if None in outcomes else True)


@dataclass(frozen=True)
class Row:
    """One runtime at one piece of work; None where a number has no meaning or was not measured."""

    work: str  # "trivial", "digits-cnn", …
    clients: int
    runtime: str  # "astrofed embedded", "bare loop", …
    seconds_per_round: float | None = None  # median
    timings: int = 0  # how many blocks of rounds the median is over
    overhead_s: float | None = None  # a round's seconds beyond the bare loop's, median of the pairs
    ratio_to_bare: float | None = None  # median of the pairs of blocks run one after the other
    ratio_to_pfl: float | None = None
    overhead_ratio: float | None = None  # how many times less overhead than Flower's runtime; None also without any
    first_round_s: float | None = None  # from the call of `simulate` to the end of the first round, in a new process
    process_s: float | None = None  # the same from the start of that process
    difference: float | None = None  # largest difference of a final weight from the bare loop's
    targets: tuple[Target, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    processor: str
    cores: int  # that this process may use
    load: float  # processes running or waiting, mean of the minute before
    software: dict[str, str]


@dataclass(frozen=True)
class BenchResult:
    """A benchmark's rows, and what they were measured with."""

    title: str
    machine: Machine
    rows: tuple[Row, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether all targets are met; None where none is missed but some could not be evaluated."""
        return verdict(target for row in self.rows for target in row.targets)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data for JSON."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows], "met": self.met}

    def table(self) -> "Table":
        """Return the result as a table for people; below it stand the targets."""
        from rich.markup import escape
        from rich.table import Table

        caption = "\n".join(
            f"{MARK[target.met]} {row.work}, {row.clients}: {target.target} ({shown(target.measured) or '-'})"
            for row in self.rows
            for target in row.targets
        )
        table = Table(title=self.title, caption=caption, caption_justify="left")
        for name in _COLUMNS:
            table.add_column(name, justify="left" if name in ("work", "runtime", "note") else "right")
        for row in self.rows:
            table.add_row(*(escape(cell) for cell in _cells(row)))
        return table


_COLUMNS = ("work", "clients", "runtime", "ms / round", "overhead ms", "/ bare", "/ pfl", "first round s", "note")


def _cells(row: Row) -> Sequence[str]:
    milliseconds = [None if value is None else 1e3 * value for value in (row.seconds_per_round, row.overhead_s)]
    numbers = (*milliseconds, row.ratio_to_bare, row.ratio_to_pfl, row.first_round_s)
    return [row.work, str(row.clients), row.runtime, *(shown(value) for value in numbers), row.note]


def shown(value: float | None) -> str:
    """Return a number with three digits; nothing for None."""
    return "" if value is None else f"{value:.3g}"


def this_machine() -> Machine:
    """Return a description of this machine and of the software that is compared."""
    return Machine(_processor(), len(os.sched_getaffinity(0)), round(os.getloadavg()[0], 2), _versions())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in SOFTWARE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
