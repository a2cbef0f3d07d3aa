"""The rows of a privacy ledger: their schema, how each is chained to the one before, and what they add up to.

A row's hash is the SHA-256 of the hash of the row before and of all it says. Rows that were edited break the chain for
all that follow, until the operator accepts them: the hash of an "accept" row covers the rows before it as they stand.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields, replace

from astrofed.shared.privacy.events import Event

FORMAT = 2  # of the file, as SQLite's user_version
SCHEMA = f"""
CREATE TABLE ledger (name TEXT NOT NULL);
CREATE TABLE entry (
    id INTEGER PRIMARY KEY,
    time TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('reserve', 'settle', 'restore', 'accept')),
    reservation INTEGER UNIQUE REFERENCES entry (id),
    run TEXT NOT NULL,
    round INTEGER NOT NULL,
    mode TEXT NOT NULL,
    dataset TEXT NOT NULL,
    unit TEXT NOT NULL,
    units INTEGER NOT NULL,
    noise_multiplier REAL CHECK (noise_multiplier > 0),
    sample_rate REAL CHECK (sample_rate > 0 AND sample_rate <= 1),
    clipping_norm REAL,
    steps INTEGER NOT NULL CHECK (steps >= 0),
    delta REAL,
    budget REAL,
    note TEXT NOT NULL,
    hash TEXT NOT NULL,
    signature TEXT NOT NULL,
    CHECK ((kind = 'settle') = (reservation IS NOT NULL)),
    CHECK ((kind = 'accept') = (noise_multiplier IS NULL)),
    CHECK ((kind = 'accept') = (sample_rate IS NULL))
);
CREATE TRIGGER entry_stays BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'rows are only added'); END;
CREATE TRIGGER entry_is_kept BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'rows are only added'); END;
PRAGMA user_version = {FORMAT};
"""


@dataclass(frozen=True)
class Row:
    """One row: what a round reserves or settles, what was restored, or what the operator accepted."""

    id: int  # counts from 1, never backwards
    time: str  # ISO 8601, UTC
    kind: str
    reservation: int | None = None  # the row that a "settle" settles
    run: str = ""
    round: int = 0
    mode: str = ""
    dataset: str = ""  # fingerprint
    unit: str = ""
    units: int = 0
    noise_multiplier: float | None = None
    sample_rate: float | None = None
    clipping_norm: float | None = None
    steps: int = 0
    delta: float | None = None  # at which the budget was checked
    budget: float | None = None  # epsilon; None: unbounded
    note: str = ""  # why the operator accepted what was in doubt; the turn of a reservation whose noise is shared

    def after(self, previous: str) -> str:
        """Return the row's hash, that of the row before being `previous`."""
        content = json.dumps(
            astuple(self), separators=(",", ":"), default=repr
        )  # repr: of what only an edit puts there
        return hashlib.sha256(f"{previous}\n{content}".encode()).hexdigest()

    @property
    def cost(self) -> "Cost":
        """What each step of a row that isn't "accept" costs."""
        assert self.noise_multiplier is not None and self.sample_rate is not None
        return Cost(self.dataset, self.unit, self.units, self.noise_multiplier, self.sample_rate)

    @property
    def event(self) -> Event:
        """The steps that a row which isn't "accept" speaks of."""
        return Event(self.cost.noise_multiplier, self.cost.sample_rate, self.steps)


@dataclass(frozen=True)
class Cost:
    """What a step costs, and which dataset: what rows are added up by."""

    dataset: str
    unit: str
    units: int
    noise_multiplier: float
    sample_rate: float

    def row(self, number: int, time: str, kind: str, steps: int) -> Row:
        """Return a row of that many such steps, of no run."""
        return Row(number, time, kind, steps=steps, **asdict(self))


NAMES = tuple(field.name for field in fields(Row))
_SELECT = f"SELECT {', '.join(NAMES)}, hash, signature FROM entry WHERE id >= ? ORDER BY id"
_INSERT = f"INSERT INTO entry ({', '.join(NAMES)}, hash, signature) VALUES ({', '.join('?' * (len(NAMES) + 2))})"


@dataclass(frozen=True)
class Stored:
    """A row as it lies in the file."""

    row: Row
    hash: str
    signature: str


def read_rows(connection: sqlite3.Connection, first: int) -> list[Stored]:
    """Return all rows from number `first` on."""
    return [Stored(Row(*values[:-2]), *values[-2:]) for values in connection.execute(_SELECT, (first,))]


def add_row(connection: sqlite3.Connection, stored: Stored) -> None:
    """Write a row."""
    connection.execute(_INSERT, (*astuple(stored.row), stored.hash, stored.signature))


class Book:
    """The rows of a ledger that were read and found whole, and what they add up to. Append-only, like the file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.last = 0  # number of the last row
        self.hash = hashlib.sha256(f"privacy ledger {name}".encode()).hexdigest()  # of the last row
        self.accepted: list[Row] = []
        self.settled: dict[int, int] = {}  # steps taken, by number of the reservation
        self.totals: dict[Cost, int] = {}  # steps spent
        self.reserved: dict[int, Row] = {}  # what was reserved or restored, by number
        self._by_dataset: dict[str, list[Row]] = {}

    def extend(self, rows: Iterable[Row], last_hash: str) -> None:
        """Take over rows that follow on the last."""
        for row in rows:
            self.last = row.id
            if row.kind == "accept":
                self.accepted.append(row)
            elif row.reservation is None:
                self.reserved[row.id] = row
                self._by_dataset.setdefault(row.dataset, []).append(row)
                self.totals[row.cost] = self.totals.get(row.cost, 0) + row.steps
            elif row.reservation in self.reserved:
                self.settled[row.reservation] = row.steps
                reserved = self.reserved[row.reservation]
                self.totals[reserved.cost] += row.steps - reserved.steps
        self.hash = last_hash

    @property
    def datasets(self) -> list[str]:
        """Fingerprints of all datasets that something was spent on, in the order of their first row."""
        return list(self._by_dataset)

    def spending(self, dataset: str) -> list[Row]:
        """Return the dataset's reservations, and what was restored for it, with the steps that count.

        Those are the steps taken, or all that were reserved where that isn't settled.
        """
        rows = self._by_dataset.get(dataset, ())
        return [replace(row, steps=self.settled.get(row.id, row.steps)) for row in rows]
