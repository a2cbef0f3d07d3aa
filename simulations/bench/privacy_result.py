"""What the bench of private training came to: steps, epsilons and targets, as JSON and as tables."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from astrofed.simulations.bench.result import MARK, Machine, Target, shown, verdict

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class StepRow:
    """One way to train one network."""

    model: str
    parameters: int
    units: int  # in a batch
    runtime: str
    seconds: float | None = None  # of a step, median
    ratio: float | None = None  # to plain SGD, median of the turns
    peak: int | None = None  # bytes beyond those before the call
    memory: float | None = None  # ratio of that to plain SGD's
    difference: float | None = None  # of a step without noise from a loop over units, as a share of the step
    note: str = ""
    targets: tuple[Target, ...] = ()

    @property
    def right(self) -> bool:
        """Whether its step is that of a loop over units, as far as float32 goes."""
        return self.difference is not None and self.difference < 1e-3


@dataclass(frozen=True)
class EpsilonRow:
    """One history of steps by each accountant, at delta 1e-5."""

    history: str
    renyi: float  # ours
    opacus_renyi: float
    numerical: float
    opacus_prv: float
    epsilon: float  # ours, the smaller of the two
    pld: float | None  # dp-accounting's; None: not installed
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True)
class PrivacyResult:
    """All rows, and what they were measured with."""

    machine: Machine
    steps: tuple[StepRow, ...]
    epsilons: tuple[EpsilonRow, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether all targets are met; None where none is missed but some could not be evaluated."""
        of_steps = [target for row in self.steps for target in row.targets]
        return verdict([*of_steps, *(target for row in self.epsilons for target in row.targets)])

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data for JSON."""
        rows = [{**asdict(row), "right": row.right} for row in self.steps]
        return {**asdict(self), "rows": rows, "steps": None, "met": self.met}

    def table(self) -> "Group":
        """Return the result for people."""
        from rich.console import Group
        from rich.table import Table

        notes = "".join(f"\n{row.model}, {row.runtime}: {row.note}" for row in self.steps if row.note)
        caption = _caption((row.model, row.targets) for row in self.steps) + notes
        steps = Table(title="A step of training", caption=caption, caption_justify="left")
        for name in ("network", "units", "runtime", "ms", "/ plain", "peak MB", "/ plain", "off"):
            steps.add_column(name, justify="left" if name in ("network", "runtime") else "right", no_wrap=True)
        for row in self.steps:
            milliseconds, megabytes = (None if v is None else v * s for v, s in ((row.seconds, 1e3), (row.peak, 1e-6)))
            numbers = (milliseconds, row.ratio, megabytes, row.memory, row.difference)
            steps.add_row(row.model, str(row.units), row.runtime, *(shown(value) for value in numbers))
        title = "Epsilon at delta 1e-5"
        epsilons = Table(
            title=title,
            caption=_caption((line.history, line.targets) for line in self.epsilons),
            caption_justify="left",
        )
        for name in ("history", "RDP", "Opacus' RDP", "numerical", "Opacus' PRV", "epsilon", "PLD"):
            epsilons.add_column(name, justify="left" if name == "history" else "right")
        for line in self.epsilons:
            values = (line.renyi, line.opacus_renyi, line.numerical, line.opacus_prv, line.epsilon, line.pld)
            epsilons.add_row(line.history, *("" if value is None else f"{value:.6g}" for value in values))
        return Group(steps, epsilons)


def _caption(rows: Iterable[tuple[str, Sequence[Target]]]) -> str:
    return "\n".join(
        f"{MARK[target.met]} {name}: {target.target} ({shown(target.measured) or '-'})"
        for name, targets in rows
        for target in targets
    )
