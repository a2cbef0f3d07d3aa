"""Who took part in a run's rounds, who was kept out, and why, for its report."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from astrofed.server.report_numbers import percent, spans
from astrofed.server.report_run import Run
from astrofed.shared.record import Round

State = Literal["used", "out", "mixed", "idle", "unused"]
MARKS: dict[State, tuple[str, str]] = {
    "used": ("●", "update used"),
    "out": ("✕", "kept out"),
    "mixed": ("◐", "some used, some kept out"),
    "unused": ("○", "usable, but the round changed nothing"),
    "idle": ("·", "not asked"),
}
_MOST_COLUMNS, _MOST_CELLS, _MOST_REASONS = 40, 12_000, 100
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Cell:
    """One participant in one column's rounds."""

    state: State
    share: float | None  # mean weight over the rounds where it was used; None: the rule has no weights
    hint: str

    @property
    def mark(self) -> str:
        """What stands in the cell: a weight in percent where there is one, else a mark."""
        if self.state == "used" and self.share is not None:
            return f"{100 * self.share:.0f}"
        return MARKS[self.state][0]


@dataclass(frozen=True)
class Matrix:
    """Participants × rounds; long runs have several rounds in a column."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]

    @property
    def heaviest(self) -> float:
        """The largest weight, for the shades."""
        return max((cell.share or 0.0 for _, cells in self.rows for cell in cells), default=0.0)

    @property
    def states(self) -> list[State]:
        """The states that occur, for the legend."""
        found = {cell.state for _, cells in self.rows for cell in cells}
        return [state for state in MARKS if state in found]


@dataclass(frozen=True)
class Reason:
    """Why something was kept out, in which rounds."""

    who: str
    reason: str
    rounds: str


def used(entry: Round) -> set[str]:
    """Return whose updates entered the model in one round."""
    return set() if entry.skipped is not None else set(entry.accepted)


def kept_out(entry: Round) -> set[str]:
    """Return whose updates were kept out of one round; one kept out only of the evaluation has its update used."""
    return {item.participant for item in entry.quarantined} - set(entry.accepted)


def matrix(run: Run) -> Matrix | None:
    """Return who was used and who was kept out in which rounds; None before the first round of training is complete."""
    rounds = run.trained
    if not rounds or run.plan.central_privacy is not None:
        return None
    columns = max(1, min(len(rounds), _MOST_COLUMNS, _MOST_CELLS // len(run.trainers)))
    width = -(-len(rounds) // columns)
    groups = [rounds[start : start + width] for start in range(0, len(rounds), width)]
    return Matrix(
        columns=tuple(spans([entry.round for entry in group]) for group in groups),
        rows=tuple((name, tuple(_cell(name, group) for group in groups)) for name in run.trainers),
    )


def reasons(run: Run) -> list[Reason]:
    """Return who was kept out and why, rounds of one participant and one kind of reason together.

    Reasons that differ only in their numbers are one kind; the first one is shown.
    """
    found: dict[tuple[str, str], tuple[str, list[int]]] = {}
    for entry in run.rounds:
        items = [(item.participant, item.reason) for item in entry.quarantined]
        if entry.skipped is not None:
            items.append(("the whole round", entry.skipped))
        for who, reason in items:
            kind = re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "#", reason)
            numbers = found.setdefault((who, kind), (reason, []))[1]
            if entry.round not in numbers:
                numbers.append(entry.round)
    refused = [Reason(item.participant, _short(item.reason), "could not enrol") for item in run.start.refused]
    rows = [Reason(who, _short(text), spans(numbers)) for (who, _), (text, numbers) in found.items()]
    return [*refused, *rows][:_MOST_REASONS]


def _cell(name: str, group: Sequence[Round]) -> Cell:
    into = [entry for entry in group if name in used(entry)]
    out = sum(name in kept_out(entry) for entry in group)
    unused = sum(name in entry.accepted and entry.skipped is not None for entry in group)
    state: State = "mixed" if into and out else "used" if into else "out" if out else "unused" if unused else "idle"
    weights = [entry.weights.get(name, 0.0) for entry in into if entry.weights]
    share = sum(weights) / len(weights) if weights else None
    where = f"round {group[0].round}" if len(group) == 1 else f"rounds {group[0].round} to {group[-1].round}"
    what = MARKS[state][1] if len(group) == 1 else f"used in {len(into)}, kept out in {out} of {len(group)}"
    return Cell(state, share, f"{name}, {where}: {what}" + (f", weight {percent(share)}" if share is not None else ""))


def _short(reason: str) -> str:
    return reason if len(reason) <= _LONGEST_REASON else reason[: _LONGEST_REASON - 1] + "…"
