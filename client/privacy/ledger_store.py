"""The file of a privacy ledger: one writer at a time, every row checked before it counts, the head signed after it."""

import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from astrofed.client.privacy.ledger_check import check_rows
from astrofed.client.privacy.ledger_rows import FORMAT, SCHEMA, Book, Row, Stored, add_row, read_rows
from astrofed.client.privacy.ledger_seal import Head, Seal
from astrofed.client.privacy.mistakes import (
    LedgerCopied,
    LedgerCut,
    LedgerInDoubt,
    LedgerUnsigned,
    LedgerUnusable,
)
from astrofed.shared.files import flush_folder

FILE = "ledger.sqlite"
WAIT_S = 60.0  # for another thread or process that is writing


class Transaction:
    """A time in which nobody else writes: all rows so far, and the means to add one."""

    def __init__(self, connection: sqlite3.Connection, book: Book, seal: Seal | None) -> None:
        self.book = book
        self._connection, self._seal = connection, seal

    @property
    def next(self) -> int:
        """The number of the row that comes next."""
        return self.book.last + 1

    def add(self, row: Row) -> str:
        """Write a row that follows on the book's last, and return its hash."""
        chain = row.after(self.book.hash)
        add_row(self._connection, Stored(row, chain, self._seal.sign(chain.encode()) if self._seal else ""))
        return chain


class Store:
    """A ledger's file and its seal; in memory and without a seal, for as long as the object lives, without a path.

    Methods raise LedgerUnusable where the file can't be read or written, and LedgerInDoubt where it is not what was
    signed last.
    """

    def __init__(self, path: Path | None, seals: Path | None) -> None:
        self._path = path
        self._seal = Seal(seals or path.parent) if path is not None else None
        elsewhere = f" --seals {seals}" if seals is not None else ""
        self._mend = f"`astrofed client ledger {path.parent if path is not None else 'HOME'}{elsewhere} --accept`"
        self._lock = threading.RLock()
        self._memory: sqlite3.Connection | None = None
        self._book: Book | None = None

    @property
    def public_key(self) -> str:
        """The key that tells whether a row was signed here, in hexadecimal digits; empty in memory."""
        return self._seal.public_key if self._seal is not None and self._seal.has_key else ""

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Give all rows, checked, and the means to add one; what was added is kept unless the block raises."""
        with self._lock, self._explained(), self._connection() as connection:
            before = connection.total_changes
            with _alone(connection):
                yield Transaction(connection, self._caught_up(connection), self._seal)
            if connection.total_changes > before:
                with _alone(connection):
                    self._caught_up(connection)

    def accept(self) -> str | None:
        """Go on with a ledger that is in doubt, as it lies there; return what was in doubt, or None if nothing was.

        The doubt is written into the ledger. Nothing that the signed head knows to be spent is forgotten: where the
        rows add up to less, the difference is added. Only where the head is gone too are lost rows lost.
        """
        with self._lock:
            try:
                with self.transaction():
                    return None
            except LedgerInDoubt as doubt:
                what = str(doubt.__cause__ or doubt)
            with self._explained():
                self._accept(what)
            return what

    def _accept(self, what: str) -> None:
        assert self._path is not None and self._seal is not None  # nothing in memory is ever in doubt
        self._book = None
        noted = self._seal.salvage()
        if not self._path.exists():
            _create(self._path)
        with closing(_open(self._path)) as connection, _alone(connection):
            book = Book(_name(connection))
            for stored in read_rows(connection, 1):
                book.extend([stored.row], stored.row.after(book.hash))
            number = max(book.last, noted.row if noted is not None else 0)
            rows = [Row(number + 1, now(), "accept", note=what)]
            for cost, steps in noted.totals.items() if noted is not None else ():
                if steps > book.totals.get(cost, 0):
                    rows.append(cost.row(number + 1 + len(rows), now(), "restore", steps - book.totals.get(cost, 0)))
            self._seal.renew_key()
            for row in rows:
                chain = Transaction(connection, book, self._seal).add(row)
                book.extend([row], chain)
            self._seal.write(self._state(book))  # before the rows: if they fail to follow, the doubt stays

    def _caught_up(self, connection: sqlite3.Connection) -> Book:
        """Return the book with all rows in it, after checking those that are new; sign the head where it is behind."""
        book = self._book or Book(_name(connection))
        stored = read_rows(connection, book.last)
        if self._seal is None:
            rows, chain = check_rows(book, stored, None, lambda _hash, _signature: True)
            book.extend(rows, chain)
        else:
            head = self._head(self._seal, _name(connection), empty=not stored)
            rows, chain = check_rows(book, stored, head, self._seal.signed)
            book.extend(rows, chain)
            if book.last > head.row:
                self._book = None  # until the head is written
                self._seal.write(self._state(book))
        self._book = book
        return book

    def _head(self, seal: Seal, name: str, *, empty: bool) -> Head:
        """Return the head that was signed last, and sign the first."""
        if not seal.has_key:
            noted = seal.salvage()
            if not empty or (noted is not None and noted.row):
                raise LedgerUnsigned("the key that signed it is gone")
            seal.create(self._state(Book(name)))
        head = seal.read()
        if head is None:
            raise LedgerUnsigned("its signed head is gone")
        if head.ledger != name:
            raise LedgerCopied("it is another ledger than the one that was signed")
        if head.inode != self._inode:
            raise LedgerCopied("it is not the file that was signed but a copy of it, such as one from a backup")
        return head

    def _state(self, book: Book) -> Head:
        return Head(book.name, self._inode, book.last, book.hash, dict(book.totals))

    @property
    def _inode(self) -> int:
        assert self._path is not None
        return self._path.stat().st_ino

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        if self._path is None or self._seal is None:
            if self._memory is None:
                self._memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
                _fill(self._memory)
            yield self._memory
            return
        had_key = self._seal.has_key  # asked first: of a ledger in the making by another process the key comes last
        if not self._path.exists():
            if had_key:
                raise LedgerCut("the file is gone, while the key that signed it is still there")
            _create(self._path)
        with closing(_open(self._path)) as connection:
            yield connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what goes wrong below into errors that name the file and the mend."""
        where = self._path or "in memory"
        try:
            yield
        except LedgerInDoubt as doubt:
            raise type(doubt)(
                f"the privacy ledger {where} is in doubt: {doubt}. Nothing is trained with it until its operator "
                f"decides: put back the file that belongs there, or go on, on record, with what there is: {self._mend}"
            ) from doubt
        except (sqlite3.Error, OSError) as error:
            raise LedgerUnusable(
                f"the privacy ledger {where} can't be used ({error}); nothing is trained without it: make its folder "
                "writable, free space on its disk, or restore the file from a backup. A file that is beyond repair can "
                f"be moved away; then {self._mend} takes what was spent from its signed head"
            ) from error


def now() -> str:
    """Return the time that a row carries."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _alone(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        yield


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
    connection.execute("PRAGMA synchronous = FULL")  # an answer is given only once the disk has it
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found != FORMAT:
        connection.close()
        raise sqlite3.DatabaseError(f"it has format {found}, this software writes {FORMAT}")
    return connection


def _name(connection: sqlite3.Connection) -> str:
    (name,) = connection.execute("SELECT name FROM ledger").fetchone()
    return str(name)


def _fill(connection: sqlite3.Connection) -> None:
    connection.executescript(SCHEMA)
    connection.execute("INSERT INTO ledger VALUES (?)", (secrets.token_hex(16),))


def _create(path: Path) -> None:
    """Write an empty ledger beside `path` and give it that name, unless another thread or process was faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        with closing(sqlite3.connect(unfinished, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            _fill(connection)
        with suppress(FileExistsError):
            path.hardlink_to(unfinished)
        flush_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)
