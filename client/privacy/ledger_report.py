"""What a ledger's rows come to: what was spent on which dataset, and by which run."""

from collections.abc import Sequence
from dataclasses import dataclass

from astrofed.client.privacy.ledger_rows import Book, Row
from astrofed.shared.privacy.accounting import epsilon
from astrofed.shared.privacy.events import Event

USUAL_DELTA = 1e-5  # where no row says at which delta the dataset's epsilon is to be


@dataclass(frozen=True)
class RunSpent:
    """What one run took; "" is what was restored after the operator had accepted a ledger in doubt."""

    run: str
    mode: str
    reservations: int
    open: int  # of them, never settled
    steps: int
    noise_multipliers: tuple[float, ...]  # ascending


@dataclass(frozen=True)
class DatasetSpent:
    """What all runs together took of one dataset's privacy."""

    dataset: str  # fingerprint
    unit: str
    units: int
    epsilon: float
    delta: float
    budget: float | None  # that of the last reservation that had one
    left: float | None
    runs: tuple[RunSpent, ...]


def spent_on_datasets(book: Book) -> list[DatasetSpent]:
    """Return what was spent on each dataset, in the order in which they were first used."""
    return [_spent(book, dataset) for dataset in book.datasets]


def _spent(book: Book, dataset: str) -> DatasetSpent:
    rows = book.spending(dataset)
    last = rows[-1]
    bounded = [row for row in rows if row.budget is not None]
    deltas = [row.delta for row in bounded or rows if row.delta is not None]
    delta, budget = deltas[-1] if deltas else USUAL_DELTA, bounded[-1].budget if bounded else None
    total = epsilon(_events(rows), delta)
    by_run: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_run.setdefault((row.run, row.mode), []).append(row)
    return DatasetSpent(
        dataset=dataset,
        unit=last.unit,
        units=last.units,
        epsilon=total,
        delta=delta,
        budget=budget,
        left=None if budget is None else max(budget - total, 0.0),
        runs=tuple(_run(book, run, mode, group) for (run, mode), group in by_run.items()),
    )


def _run(book: Book, run: str, mode: str, rows: Sequence[Row]) -> RunSpent:
    return RunSpent(
        run=run,
        mode=mode,
        reservations=len(rows),
        open=sum(row.kind == "reserve" and row.id not in book.settled for row in rows),
        steps=sum(row.steps for row in rows),
        noise_multipliers=tuple(sorted({event.noise_multiplier for event in _events(rows)})),
    )


def _events(rows: Sequence[Row]) -> list[Event]:
    return [row.event for row in rows]
