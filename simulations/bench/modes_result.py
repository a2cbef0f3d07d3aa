"""What `astrofed bench modes` measured: rows of one number each, with its interval and targets; as JSON, as a table."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from astrofed.simulations.bench.result import MARK, Machine, Target, shown, verdict

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class ModeRow:
    """One measured number."""

    mode: str  # "meta", "single", …
    work: str
    measure: str  # what the number is, with its unit
    value: float | None
    low: float | None = None  # of a 95 % interval of the mean
    high: float | None = None
    count: int = 1  # how many measurements the value is over
    targets: tuple[Target, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class ModesResult:
    """A benchmark's rows, and what they were measured with."""

    machine: Machine
    rows: tuple[ModeRow, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether all targets are met; None where none is missed but some could not be evaluated."""
        return verdict(target for row in self.rows for target in row.targets)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data for JSON."""
        return {**asdict(self), "met": self.met}

    def table(self) -> "Table":
        """Return the result as a table for people; below it stand the targets."""
        from rich.markup import escape
        from rich.table import Table

        caption = "\n".join(
            f"{MARK[target.met]} {row.mode}, {row.work}: {target.target} ({shown(target.measured) or '-'})"
            for row in self.rows
            for target in row.targets
        )
        table = Table(title="Modes", caption=caption, caption_justify="left")
        for name in ("mode", "work", "measure", "value", "95 %", "over", "note"):
            table.add_column(name, justify="right" if name in ("value", "95 %", "over") else "left")
        for row in self.rows:
            interval = "" if row.low is None else f"{shown(row.low)} … {shown(row.high)}"
            cells = (row.mode, row.work, row.measure, shown(row.value), interval, str(row.count), row.note)
            table.add_row(*(escape(cell) for cell in cells))
        return table


def at_most(text: str, value: float, bound: float) -> Target:
    """Return the target that a value should not lie above a bound."""
    return Target(text, value, value <= bound)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of independent values and the ends of its 95 % interval by Student's t; at least two values."""
    from scipy.stats import t  # type: ignore[import-untyped]

    mean = statistics.fmean(values)
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half
