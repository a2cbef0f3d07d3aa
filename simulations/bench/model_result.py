"""What `astrofed bench model` measured: sections of rows, each with the targets it is judged by."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from astrofed.simulations.bench.result import MARK, Machine, Target, verdict

if TYPE_CHECKING:
    from rich.console import Group

# Two-sided 95 % quantiles of Student's t by degrees of freedom.
_T = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and half the width of its 95 % interval; None from a single seed."""

    mean: float
    half: float | None
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.4g}" + (f" ± {self.half:.2g}" if self.half is not None else " (one seed)")


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of a value over seeds with its 95 % interval by Student's t."""
    mean, seeds = sum(values) / len(values), len(values)
    if seeds < 2:
        return Interval(mean, None, seeds)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (seeds - 1))
    return Interval(mean, _T.get(seeds - 1, 1.96) * spread / math.sqrt(seeds), seeds)


@dataclass(frozen=True)
class Part:
    """One section: a table's columns and rows as text, the same numbers as data, targets, and what to know of it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    targets: tuple[Target, ...] = ()
    note: str = ""
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelResult:
    """All sections, and what they were measured with."""

    title: str
    machine: Machine
    parts: tuple[Part, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether all targets are met; None where none is missed but some could not be evaluated."""
        return verdict(target for part in self.parts for target in part.targets)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data for JSON."""
        return {**asdict(self), "met": self.met}

    def table(self) -> "Group":
        """Return the sections as tables for people."""
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table

        tables = []
        for part in self.parts:
            lines = [f"{MARK[target.met]} {target.target}" + _measured(target) for target in part.targets]
            caption = "\n".join([*lines, *([part.note] if part.note else [])])
            table = Table(title=part.title, caption=escape(caption), caption_justify="left")
            for name in part.columns:
                table.add_column(name)
            for row in part.rows:
                table.add_row(*(escape(cell) for cell in row))
            tables.append(table)
        return Group(*tables)

    def markdown(self) -> str:
        """Return the sections for a document."""
        machine = self.machine
        lines = [f"Machine: {machine.processor}, {machine.cores} cores, load {machine.load} before.", ""]
        for part in self.parts:
            lines += [f"## {part.title}", "", "| " + " | ".join(part.columns) + " |"]
            lines += ["|" + "---|" * len(part.columns), *("| " + " | ".join(row) + " |" for row in part.rows), ""]
            lines += [f"- {MARK[target.met]}: {target.target}{_measured(target)}" for target in part.targets]
            lines += ["", part.note, ""] if part.note else [""]
        return "\n".join(lines)


def _measured(target: Target) -> str:
    return "" if target.measured is None else f" (measured {target.measured:.3g})"
