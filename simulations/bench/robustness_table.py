"""The table of accuracies under attack: its cells, with intervals over seeds, as JSON and for people."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from astrofed.simulations.bench.result import MARK, Machine, Target, verdict

if TYPE_CHECKING:
    from rich.table import Table

# Quantiles of Student's t for 95 % intervals, by the number of seeds.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


@dataclass(frozen=True)
class Cell:
    """One defence against one attack on one split: accuracy in per cent over seeds, with half of its 95 % interval."""

    defence: str
    split: str
    attack: str
    liars: int = 4
    accuracy: float | None = None
    half_width: float | None = None
    byzfl: float | None = None  # None: ByzFL is not installed, or has no such rule
    byzfl_half_width: float | None = None
    note: str = ""  # why there is no number
    findings: tuple[str, ...] = ()  # of papers, which this cell should show again

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What the cell is of: defence, split, attack, liars."""
        return self.defence, self.split, self.attack, self.liars

    @property
    def worse_than_byzfl(self) -> bool:
        """Whether ByzFL's accuracy is higher beyond both intervals together."""
        if self.accuracy is None or self.byzfl is None:
            return False
        return self.byzfl - self.accuracy > math.hypot(self.half_width or 0.0, self.byzfl_half_width or 0.0)


@dataclass(frozen=True)
class RobustnessResult:
    """The table, and what is known of its order beside what was measured."""

    machine: Machine
    rows: tuple[Cell, ...]
    targets: tuple[Target, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether all targets are met; None where none is missed but some could not be evaluated."""
        return verdict(self.targets)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data for JSON."""
        return {**asdict(self), "met": self.met}

    def table(self) -> "Table":
        """Return the result as a table for people: accuracy, and ByzFL's in brackets."""
        from rich.table import Table

        caption = "\n".join(f"{MARK[t.met]}: {t.target} ({_shown(t.measured, None)})" for t in self.targets)
        table = Table(
            title="Accuracy (datacube: skill) under attack, % (ByzFL); * a paper's finding, see below",
            caption=caption,
            caption_justify="left",
        )
        attacks = list(dict.fromkeys(cell.attack for cell in self.rows))
        for name in ("split", "defence", *attacks):
            table.add_column(name, justify="left" if name in ("split", "defence") else "right")
        cells = {(cell.split, cell.liars, cell.defence, cell.attack): cell for cell in self.rows}
        for split, liars, defence in dict.fromkeys((cell.split, cell.liars, cell.defence) for cell in self.rows):
            found = [cells.get((split, liars, defence, attack)) for attack in attacks]
            table.add_row(f"{split}, f = {liars}", defence, *map(_cell, found))
        return table


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the mean and half of its 95 % interval by Student's t."""
    if not values:
        return None, None
    if len(values) < 2:
        return values[0], None
    return statistics.mean(values), STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.accuracy is None:
        return "refused"
    starred = "*" if cell.findings else ""
    return (
        starred
        + _shown(cell.accuracy, cell.half_width)
        + (f" ({_shown(cell.byzfl, None)})" if cell.byzfl is not None else "")
    )


def _shown(value: float | None, half_width: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" + (f" ± {half_width:.1f}" if half_width is not None else "")
