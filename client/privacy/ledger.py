"""The privacy ledger: what a site's training has spent on each dataset, over all rounds, runs and modes, in one file.

Spending has two phases: a round's steps are reserved before its first gradient and settled after it, when fewer may
turn out to have been taken. A reservation that was never settled (a crash) counts as spent. Rows are only ever added,
keyed by the dataset's fingerprint; epsilon is always computed anew from all of them.

**A repeated round is charged again.** Noise comes from a cryptographic generator and is never replayed, so a round that
is trained once more after a resume is another release about the same data, whatever its number and seed. Rows are
therefore never merged by run and round; only settling one reservation twice for the same steps counts once.

**What is found.** Each row carries the hash of the one before and a signature; the last is noted in a signed head
(`ledger_seal`). A row that was edited, added or taken out, a file that was truncated, rolled back, replaced by an empty
one, or copied elsewhere (another inode) is found at the next use and refused until the operator decides. Order of
writing: rows are committed to SQLite (write-ahead log, flushed), then the head is signed anew, each while no other
process can write. A process that is killed in between leaves the head one transaction behind; the rows beyond it prove
themselves by their signatures, and the next use brings the head up to date before it adds anything.

**What is not found.** Whoever can write the ledger *and* reads its key can forge both. Whoever puts back an older
ledger and its head together, in place and in the same inode (a snapshot of the whole disk), rolls back unseen, and so
does whoever removes all, key included. Keep head and key elsewhere (`seals`), on another disk or under another user,
against all of these; a coordinator that remembers a site's public key notices the last.
"""

from collections.abc import Sequence
from pathlib import Path

from astrofed.client.privacy.ledger_rows import Book, Row
from astrofed.client.privacy.ledger_store import FILE, Store, now
from astrofed.client.privacy.mistakes import AlreadySettled, BudgetSpent, TurnUsed
from astrofed.shared.privacy.events import Event, Expense

__all__ = ["FILE", "BudgetSpent", "Expense", "Ledger"]


class Ledger:
    """A site's ledger below its home folder; in memory, for as long as the object lives, where there is no home.

    Every method raises LedgerUnusable where the file can't be read or written, and LedgerInDoubt where it is not what
    was signed last.
    """

    def __init__(self, home: Path | None, seals: Path | None = None) -> None:
        """`home`: the folder of the file; `seals`: that of its signed head and key, by default the same."""
        self._store = Store(home / FILE if home is not None else None, seals)

    def reserve(self, expense: Expense, budget: float | None, delta: float) -> int:
        """Write a round's spending before it happens and return the reservation's number.

        Args:
            expense: what the round will spend at most.
            budget: the epsilon that all spending on the dataset together may come to; None for no bound.
            delta: at which epsilon is computed.

        Raises:
            BudgetSpent: it doesn't fit into what is left; nothing is written.
            TurnUsed: a round was reserved under its turn before; nothing is written.
        """
        with self._store.transaction() as transaction:
            if expense.turn and any(row.note == expense.turn for row in transaction.book.reserved.values()):
                raise TurnUsed(
                    f"noise was drawn under turn {expense.turn} before, and a second message would show what both "
                    "hide; a coordinator that repeats a round must name another turn"
                )
            if budget is not None:
                _check(_events(transaction.book, expense.dataset), expense, budget, delta)
            transaction.add(_row(transaction.next, "reserve", expense, expense.event.steps, None, delta, budget))
            return transaction.next

    def settle(self, reservation: int, expense: Expense, steps: int) -> None:
        """Write how many of the reserved steps were taken. Saying the same again changes nothing.

        Raises:
            AlreadySettled: another number was written before.
        """
        with self._store.transaction() as transaction:
            book = transaction.book
            reserved = book.reserved.get(reservation)
            if reserved is None or reserved.dataset != expense.dataset:
                raise ValueError(f"row {reservation} reserves nothing on dataset {expense.dataset[:12]}…")
            if not 0 <= steps <= reserved.steps:
                raise ValueError(f"{steps} steps were taken, {reserved.steps} were reserved")
            before = book.settled.get(reservation)
            if before is None:
                transaction.add(_row(transaction.next, "settle", expense, steps, reservation))
            elif before != steps:
                raise AlreadySettled(f"reservation {reservation} was settled for {before} steps, not for {steps}")

    def events(self, dataset: str) -> list[Event]:
        """Return all that was ever spent on the dataset with that fingerprint, reservations left open included."""
        with self._store.transaction() as transaction:
            return _events(transaction.book, dataset)

    def book(self) -> Book:
        """Return all rows and what they add up to; for looking at, while nothing is spent."""
        with self._store.transaction() as transaction:
            return transaction.book

    def accept(self) -> str | None:
        """Go on with a ledger that is in doubt; return what was in doubt, or None if nothing was (`Store.accept`)."""
        return self._store.accept()

    @property
    def public_key(self) -> str:
        """The key that tells whether a row was signed here, in hexadecimal digits; empty in memory."""
        return self._store.public_key


def _events(book: Book, dataset: str) -> list[Event]:
    return [row.event for row in book.spending(dataset)]


def _row(
    number: int,
    kind: str,
    expense: Expense,
    steps: int,
    reservation: int | None,
    delta: float | None = None,
    budget: float | None = None,
) -> Row:
    return Row(  # numbers as the file gives them back, or the row's hash would not be the same again
        id=number,
        time=now(),
        kind=kind,
        reservation=reservation,
        run=expense.run,
        round=int(expense.round),
        mode=expense.mode,
        dataset=expense.dataset,
        unit=expense.unit,
        units=int(expense.units),
        noise_multiplier=float(expense.event.noise_multiplier),
        sample_rate=float(expense.event.sample_rate),
        clipping_norm=float(expense.clipping_norm),
        steps=int(steps),
        delta=None if delta is None else float(delta),
        budget=None if budget is None else float(budget),
        note=expense.turn if kind == "reserve" else "",
    )


def _check(spent: Sequence[Event], expense: Expense, budget: float, delta: float) -> None:
    from astrofed.shared.privacy.accounting import epsilon, within  # slow to load, and not needed without a budget

    if not within([*spent, expense.event], delta, budget):
        before = epsilon(spent, delta)
        raise BudgetSpent(
            f"round {expense.round} of run {expense.run!r} would bring what is spent on dataset "
            f"{expense.dataset[:12]}… to epsilon {epsilon([*spent, expense.event], delta):.4g} at delta {delta:g}; the "
            f"budget is {budget:g}, spent are {before:.4g}, left {max(budget - before, 0):.4g}. Only the data's owner "
            "may raise privacy.epsilon; a new plan can do with fewer rounds or more noise"
        )
