"""What a site must not forget over a crash: questions that it has been given, and replies that the server lacks.

The server hands a question out once, so its claim is kept until there is a reply. A reply is kept until the server has
it, and sent again after failures and restarts; its id is the hash of its bytes, by which the server knows it again. A
file is whole or not there (`write_atomically`); a reply is flushed to the disk, for its training may have been charged.
Large arrays lie beside them, as blobs.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from astrofed.client.service.sealed import Sealed, Torn
from astrofed.shared.blobs import Blobs
from astrofed.shared.errors import AstrofedError
from astrofed.shared.files import CannotWrite, write_atomically

_ID = re.compile(r"[0-9a-f]{64}")


class BadId(AstrofedError):
    """A message's id that is no hash, and so no name of a file either."""


class Spool:
    """Claims and replies below a folder, each under the id of its question."""

    def __init__(self, folder: Path) -> None:
        self._claims, self._begun, self._replies = folder / "claims", folder / "begun", folder / "replies"
        for each in (self._claims, self._begun, self._replies):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
        for torn in folder.glob("*/.*.unfinished"):  # of a process that was killed while it wrote
            torn.unlink(missing_ok=True)
        self.blobs = Blobs(folder / "blobs")
        self._unsaved: dict[str, Sealed] = {}
        self._node = folder / "node-id"

    @property
    def node(self) -> int | None:
        """The node's id at the last time that it was connected; None if it never was."""
        try:
            return int(self._node.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def remember_node(self, node: int) -> None:
        """Keep the node's id.

        Raises:
            CannotWrite: the disk is full; after a crash the server will then make this node wait for a minute.
        """
        if self.node != node:
            write_atomically(self._node, str(node).encode(), private=True)

    def keep_claim(self, question: str, claim: Sealed) -> None:
        """Keep a question that was handed out.

        Raises:
            BadId: its id is none.
            CannotWrite: the disk is full; the question can be answered all the same, unless this process dies.
        """
        write_atomically(self._claims / _checked(question), claim.to_bytes(), flush=False, private=True)

    def mark_begun(self, question: str) -> None:
        """Note that work on a question begins: after a crash it is known that it may have been charged."""
        write_atomically(self._begun / _checked(question), b"", flush=False, private=True)

    def was_begun(self, question: str) -> bool:
        """Whether work on that question began, here or before a crash."""
        return (self._begun / question).exists()

    def claims(self) -> Iterator[tuple[str, Sealed]]:
        """Give the questions that have no reply yet, the oldest first; what can't be read is dropped."""
        for question, claim in _read(self._claims):
            if self._has_reply(question):
                self.drop_claim(question)
            else:
                yield question, claim

    def drop_claim(self, question: str) -> None:
        """Forget a question: there is a reply, or nobody wants one any more."""
        (self._claims / question).unlink(missing_ok=True)
        (self._begun / question).unlink(missing_ok=True)

    def keep_reply(self, question: str, reply: Sealed) -> CannotWrite | None:
        """Keep a reply and forget the question; where the disk is full, keep it in memory and return why."""
        try:
            write_atomically(self._replies / _checked(question), reply.to_bytes(), private=True)
        except CannotWrite as error:
            self._unsaved[question] = reply
            return error
        self.drop_claim(question)
        return None

    def replies(self) -> Iterator[tuple[str, Sealed]]:
        """Give the replies that the server lacks, the oldest first."""
        yield from list(self._unsaved.items())
        yield from _read(self._replies)

    def drop_reply(self, question: str) -> None:
        """Forget a reply: the server has it, or does not want it any more."""
        self._unsaved.pop(question, None)
        (self._replies / question).unlink(missing_ok=True)
        self.drop_claim(question)

    @property
    def waiting(self) -> int:
        """How many replies the server lacks."""
        return len(self._unsaved) + sum(1 for path in self._replies.iterdir() if _ID.fullmatch(path.name))

    def _has_reply(self, question: str) -> bool:
        return question in self._unsaved or (self._replies / question).exists()


def _checked(question: str) -> str:
    if not _ID.fullmatch(question):
        raise BadId(f"the message's id {question[:80]!r} is no SHA-256")
    return question


def _read(folder: Path) -> Iterator[tuple[str, Sealed]]:
    paths = [path for path in folder.iterdir() if _ID.fullmatch(path.name)]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
        try:
            yield path.name, Sealed.from_bytes(path.read_bytes())
        except FileNotFoundError:
            continue
        except Torn:  # whole files only are written here; a disk can still go bad
            path.rename(path.with_name(f"{path.name}.torn"))
