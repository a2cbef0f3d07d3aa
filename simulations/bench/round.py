"""`astrofed bench round`: a round between machines that don't trust each other, beside Flower's own and the bytes.

Four sites that do nothing but add a number to every weight, so that all is overhead: our deployment, Flower's own, and
the same bytes through the same TLS stack. All on loopback and with real processes, one after the other for each size.
"""

import logging
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from astrofed.server.service.authority import Authority
from astrofed.server.service.setup import open_home
from astrofed.shared import registry
from astrofed.simulations.bench.memory import peak_beyond
from astrofed.simulations.bench.result import MARK, Machine, Target, shown, this_machine, verdict
from astrofed.simulations.bench.round_bytes import bytes_server
from astrofed.simulations.bench.round_deployed import SITES, TRIVIAL, deployed
from astrofed.simulations.bench.round_stock import StockFailed, stock

if TYPE_CHECKING:
    from rich.table import Table

OURS, STOCK, BYTES = "astrofed deployment", "Flower deployment", "bytes over TLS"
SMALLEST_S, TIMES_BYTES, TIMES_MODEL = 1.0, 2.0, 2.0
BLOCKS = 64 << 20  # bytes that a server may hold beside two models
ROUNDS = 3  # of a size that was asked for
SIZES = {1_000: (12, 3), 1_000_000: (6, 3), 25_000_000: (3, 2)}  # parameters: rounds that are timed, ours and Flower's
QUICK = {1_000: (5, 1), 1_000_000: (3, 0)}


@dataclass(frozen=True)
class RoundRow:
    """One way to do a round, at one size."""

    parameters: int
    runtime: str
    seconds: float | None  # median over the rounds; None where it could not be measured, and `note` says why
    fastest: float | None
    rounds: int
    ratio_to_bytes: float | None = None
    ratio_to_stock: float | None = None  # how many times faster than Flower's own
    memory: float | None = None  # the server's at its peak beyond what it holds at rest, in models
    targets: tuple[Target, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class RoundResult:
    """The benchmark's rows, and where it was measured."""

    machine: Machine
    rows: tuple[RoundRow, ...]

    @property
    def met(self) -> bool | None:
        """Whether all targets are met; None where none is missed but some could not be evaluated."""
        return verdict(target for row in self.rows for target in row.targets)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data for JSON."""
        return {"machine": asdict(self.machine), "rows": [asdict(row) for row in self.rows], "met": self.met}

    def table(self) -> "Table":
        """Return the result as a table for people; below it stand the targets."""
        from rich.markup import escape
        from rich.table import Table

        caption = "\n".join(
            f"{MARK[target.met]} {row.parameters:,} parameters: {target.target} ({shown(target.measured) or '-'})"
            for row in self.rows
            for target in row.targets
        )
        machine = f"{self.machine.cores} cores, load {self.machine.load:g}"
        table = Table(title=f"A round of {SITES} sites over TLS, all overhead ({machine})", caption=caption)
        for name in (
            "parameters",
            "runtime",
            "s / round",
            "fastest",
            "rounds",
            "/ bytes",
            "faster than Flower",
            "memory / model",
            "note",
        ):
            table.add_column(name, justify="left" if name in ("runtime", "note") else "right")
        for row in self.rows:
            numbers = (row.ratio_to_bytes, row.ratio_to_stock, row.memory)
            cells = (f"{row.parameters:,}", row.runtime, shown(row.seconds), shown(row.fastest), str(row.rounds))
            table.add_row(*cells, *(shown(value) for value in numbers), escape(row.note))
        return table


def run_round_bench(*, quick: bool = False, parameters: int | None = None) -> RoundResult:
    """Measure; it takes about five minutes, with `quick` about two.

    With a number of `parameters` only that size is measured, without Flower's own, and the server's memory as well.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)  # a line for each round would hide the table
    registry.load_plugin_file(TRIVIAL)
    machine, rows = this_machine(), []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="astrofed-bench-")))
            ours = stack.enter_context(deployed(folder / "ours"))
            home = open_home(folder / "ours" / "server")
            authority = Authority(home.authority)
            files = (authority.server_certificate, authority.server_key, home.authority / "ca.crt")
            bare = stack.enter_context(bytes_server(*files, SITES))
            sizes = {parameters: (ROUNDS, 0)} if parameters else QUICK if quick else SIZES
            if parameters:
                ours.rounds(min(SIZES), 1)  # what is loaded once and for all is no model's memory
            for size, (rounds, stock_rounds) in sizes.items():
                at_rest = ours.service_peak()
                mine, peak = peak_beyond(lambda size=size, rounds=rounds: ours.rounds(size, rounds))  # type: ignore[misc]
                most = ours.service_peak()
                least = [bare.round(4 * size) for _ in range(rounds + 1)][1:]
                theirs, note = _stock(folder / f"stock-{size}", files, size, stock_rounds)
                held = peak + most - at_rest if peak is not None and most is not None and at_rest is not None else None
                rows += _rows(size, mine, least, theirs, note, held if parameters else None)
    finally:
        torch.set_num_threads(threads)
    return RoundResult(machine, tuple(rows))


def _stock(folder: Path, files: tuple[Path, Path, Path], parameters: int, rounds: int) -> tuple[list[float], str]:
    if not rounds:
        return [], "left out"
    try:
        with stock(folder, *files, SITES) as flower:
            return flower.rounds(parameters, rounds), ""
    except StockFailed as error:
        return [], str(error)


def _rows(
    parameters: int, mine: list[float], least: list[float], theirs: list[float], note: str, held: int | None = None
) -> list[RoundRow]:
    middle: Callable[[list[float]], float | None] = lambda times: statistics.median(times) if times else None  # noqa: E731
    seconds, bare, flower = statistics.median(mine), statistics.median(least), middle(theirs)
    targets = []
    if parameters == min(SIZES):
        targets.append(Target(f"at most {SMALLEST_S:g} s a round", seconds, seconds <= SMALLEST_S))
    memory = None if held is None else held / (4 * parameters)
    if held is not None:
        wanted = f"at most {TIMES_MODEL:g} models and {BLOCKS >> 20} MiB of memory"
        targets.append(Target(wanted, memory, held <= TIMES_MODEL * 4 * parameters + BLOCKS))
    if parameters >= max(SIZES):
        share = seconds / bare
        targets.append(Target(f"at most {TIMES_BYTES:g} times the bytes alone", share, share <= TIMES_BYTES))
    faster = None if flower is None else flower / seconds
    return [
        RoundRow(parameters, OURS, seconds, min(mine), len(mine), seconds / bare, faster, memory, tuple(targets)),
        RoundRow(parameters, BYTES, bare, min(least), len(least)),
        RoundRow(
            parameters,
            STOCK,
            flower,
            min(theirs, default=None),
            len(theirs),
            None if flower is None else flower / bare,
            note=note,
        ),
    ]
