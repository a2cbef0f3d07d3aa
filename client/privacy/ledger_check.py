"""Whether the rows of a privacy ledger are those that were written: the chain, the signatures and the signed head."""

from collections.abc import Callable, Sequence

from astrofed.client.privacy.ledger_rows import Book, Row, Stored
from astrofed.client.privacy.ledger_seal import Head
from astrofed.client.privacy.mistakes import LedgerCut, LedgerEdited, LedgerUnsigned


def check_rows(
    book: Book, stored: Sequence[Stored], head: Head | None, signed: Callable[[bytes, str], bool]
) -> tuple[list[Row], str]:
    """Return the rows that follow on those in `book`, and the hash of the last of them.

    Args:
        book: rows that were checked before.
        stored: the last of those and all that follow, as they lie in the file.
        head: what was signed last; rows beyond it need signatures of their own. None: nothing is signed (in memory).
        signed: whether a row's hash has that signature.

    Raises:
        LedgerCut: rows that were checked or signed before are gone.
        LedgerEdited: a row is not what was written, and no later "accept" row covers it.
        LedgerUnsigned: the head is older than the rows in `book`: it was rolled back.
    """
    sealed = head.row if head is not None else 0
    if head is not None and sealed < book.last:
        raise LedgerUnsigned(f"its signed head is of row {sealed}, but row {book.last} was signed before")
    if book.last:
        if not stored or stored[0].row.id != book.last:
            raise LedgerCut(f"row {book.last}, which was read before, is gone")
        if stored[0].hash != book.hash:
            raise LedgerEdited(f"row {book.last} is another than was read before")
        stored = stored[1:]
    chain, last, broken = book.hash, book.last, 0
    hash_at_seal = chain if sealed == last else ""
    for item in stored:
        row, chain = item.row, item.row.after(chain)
        ours = item.hash == chain and (head is None or row.id <= sealed or signed(chain.encode(), item.signature))
        if ours and row.kind == "accept":
            broken = 0  # its hash covers the rows before as they stand
        elif not broken and not (ours and row.id == last + 1):
            broken = row.id
        last = row.id
        if last == sealed:
            hash_at_seal = chain
    if last < sealed:
        raise LedgerCut(f"it ends with row {last}, but {sealed} rows were signed")
    if broken:
        raise LedgerEdited(f"row {broken} is not what was written, or what came before it is gone")
    if head is not None and hash_at_seal != head.hash:
        raise LedgerEdited(f"its first {sealed} rows are not those that were signed")
    return [item.row for item in stored], chain
