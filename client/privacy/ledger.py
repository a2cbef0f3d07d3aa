"""The privacy ledger: what a site's training has spent on each dataset, over all rounds and runs, in one SQLite file.

Spending has two phases: a round's steps are reserved before its first gradient and settled after it. A reservation that
was never settled (a crash) counts as spent. Rows are only ever added, keyed by the dataset's fingerprint; epsilon is
always computed anew from all of them.
"""

import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from astrofed.client.privacy.accounting import Event, epsilon, within
from astrofed.shared.errors import UserMistake

FILE = "ledger.sqlite"
WAIT_S = 60.0  # for another thread or process that is writing
_SCHEMA = """
CREATE TABLE entry (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('reserve', 'settle')),
    reservation INTEGER UNIQUE REFERENCES entry (id),
    run TEXT NOT NULL,
    round INTEGER NOT NULL,
    mode TEXT NOT NULL,
    dataset TEXT NOT NULL,
    unit TEXT NOT NULL,
    units INTEGER NOT NULL,
    noise_multiplier REAL NOT NULL CHECK (noise_multiplier > 0),
    sample_rate REAL NOT NULL CHECK (sample_rate > 0 AND sample_rate <= 1),
    clipping_norm REAL NOT NULL,
    steps INTEGER NOT NULL CHECK (steps >= 0),
    CHECK ((kind = 'settle') = (reservation IS NOT NULL))
);
CREATE TRIGGER entry_stays BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'rows are only added'); END;
CREATE TRIGGER entry_is_kept BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'rows are only added'); END;
"""
_SPENT = """
SELECT reserved.noise_multiplier, reserved.sample_rate, COALESCE(settled.steps, reserved.steps)
FROM entry AS reserved LEFT JOIN entry AS settled ON settled.reservation = reserved.id
WHERE reserved.kind = 'reserve' AND reserved.dataset = ? ORDER BY reserved.id
"""


class BudgetSpent(UserMistake):
    """A round would spend more than is left of a dataset's privacy budget."""


class LedgerUnusable(UserMistake):
    """The ledger can't be read or written; without it nothing may be spent."""


@dataclass(frozen=True)
class Expense:
    """What a round of DP-SGD is about to spend, and on what."""

    run: str
    round: int
    mode: str
    dataset: str  # fingerprint
    unit: str  # what one privacy unit is
    units: int  # privacy units in the training data
    clipping_norm: float
    event: Event


class Ledger:
    """A site's ledger below its home folder; in memory, for as long as the object lives, where there is no home.

    Every method raises LedgerUnusable where the file can't be read or written.
    """

    def __init__(self, home: Path | None) -> None:
        self._path = home / FILE if home is not None else None
        self._lock = threading.Lock()
        self._memory: sqlite3.Connection | None = None

    def reserve(self, expense: Expense, budget: float | None, delta: float) -> int:
        """Write a round's spending before it happens and return the reservation's number.

        Args:
            expense: what the round will spend at most.
            budget: the epsilon that all spending on the dataset together may come to; None for no bound.
            delta: at which epsilon is computed.

        Raises:
            BudgetSpent: it doesn't fit into what is left; nothing is written.
        """
        with self._transaction() as connection:
            events = _events(connection, expense.dataset)
            if budget is not None and not within([*events, expense.event], delta, budget):
                spent = epsilon(events, delta)
                raise BudgetSpent(
                    f"round {expense.round} of run {expense.run!r} would bring what is spent on dataset "
                    f"{expense.dataset[:12]}… to epsilon {epsilon([*events, expense.event], delta):.4g} at delta "
                    f"{delta:g}; the budget is {budget:g}, spent are {spent:.4g}, left {max(budget - spent, 0):.4g}. "
                    "Only the data's owner may raise privacy.epsilon; a new plan can do with fewer rounds or more noise"
                )
            return _add(connection, "reserve", None, expense, expense.event.steps)

    def settle(self, reservation: int, expense: Expense, steps: int) -> None:
        """Write how many of the reserved steps were taken."""
        if not 0 <= steps <= expense.event.steps:
            raise ValueError(f"{steps} steps were taken, {expense.event.steps} were reserved")
        with self._transaction() as connection:
            _add(connection, "settle", reservation, expense, steps)

    def events(self, dataset: str) -> list[Event]:
        """Return all that was ever spent on the dataset with that fingerprint, reservations left open included."""
        with self._transaction() as connection:
            return _events(connection, dataset)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Give a connection on which nobody else writes; what the block did is kept only if it raises nothing."""
        with self._lock:
            try:
                connection = self._connect()
            except (sqlite3.Error, OSError) as error:
                raise self._unusable(error) from error
            try:
                connection.execute("PRAGMA synchronous = FULL")  # an answer is given only once the disk has it
                connection.execute("BEGIN IMMEDIATE")
                with connection:
                    yield connection
            except sqlite3.Error as error:
                raise self._unusable(error) from error
            finally:
                if connection is not self._memory:
                    connection.close()

    def _connect(self) -> sqlite3.Connection:
        if self._path is None:
            if self._memory is None:
                self._memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
                self._memory.executescript(_SCHEMA)
            return self._memory
        if not self._path.exists():
            _create(self._path)
        return sqlite3.connect(self._path, timeout=WAIT_S, isolation_level=None)

    def _unusable(self, error: Exception) -> LedgerUnusable:
        return LedgerUnusable(
            f"the privacy ledger {self._path or 'in memory'} can't be used ({error}); nothing is trained without it: "
            "make its folder writable, free space on its disk, or restore the file from a backup"
        )


def _create(path: Path) -> None:
    """Write an empty ledger beside `path` and give it that name, unless another thread or process was faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        with closing(sqlite3.connect(unfinished, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(_SCHEMA)
        with suppress(FileExistsError):
            path.hardlink_to(unfinished)
    finally:
        unfinished.unlink(missing_ok=True)


def _events(connection: sqlite3.Connection, dataset: str) -> list[Event]:
    return [Event(noise, rate, steps) for noise, rate, steps in connection.execute(_SPENT, (dataset,))]


def _add(connection: sqlite3.Connection, kind: str, reservation: int | None, expense: Expense, steps: int) -> int:
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": kind,
        "reservation": reservation,
        "run": expense.run,
        "round": expense.round,
        "mode": expense.mode,
        "dataset": expense.dataset,
        "unit": expense.unit,
        "units": expense.units,
        "noise_multiplier": expense.event.noise_multiplier,
        "sample_rate": expense.event.sample_rate,
        "clipping_norm": expense.clipping_norm,
        "steps": steps,
    }
    cursor = connection.execute(
        f"INSERT INTO entry ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})", row
    )
    return int(cursor.lastrowid or 0)
