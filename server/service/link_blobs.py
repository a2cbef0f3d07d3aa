"""Which node may read or write which blob: a message's receiver reads, a reply's sender writes, and nobody else.

The link only says what may be done and where the file lies; the gateway moves the bytes. A blob that has come is
checked against its name before its message counts as complete.
"""

from collections.abc import Mapping

from astrofed.server.service.link_state import LinkRefused, LinkState, ReplyTooLarge
from astrofed.shared.blobs import BLOB_HEADER, MESSAGE_HEADER, RUN_HEADER, SIZE_HEADER, Blob
from astrofed.shared.packing import blob_id

MOST_HELD = 4  # blobs of one node's replies that nobody has fetched yet


class NotAnnounced(LinkRefused):
    """A blob of which this process has not heard; who sends it asks again."""


class LinkBlobs:
    """Answers the gateway about blobs."""

    def __init__(self, state: LinkState, max_reply: int) -> None:
        self._state, self._max_reply = state, max_reply
        self._objects, self._blobs = state.objects, state.objects.blobs
        self._coming: dict[str, tuple[int, Blob]] = {}  # by the name of the file
        self._held: dict[int, set[str]] = {}  # by node, what it has sent or is sending

    def reading(self, node: int, headers: Mapping[str, str]) -> dict[str, str | int]:
        """Return the file of a blob that a node may read, and its size.

        Raises:
            LinkRefused: the blob belongs to no message for that node.
            WrongBlob: it is not there.
        """
        run, message, blob = _named(headers)
        if not self._state.asked(node, run, message) or not self._belongs(message, blob):
            raise LinkRefused(f"blob {blob.id[:12]}… is not of a message for node {node}")
        self._state.fetching(node)
        return {"file": blob.id, "size": self._blobs.open(blob).size}

    def writing(self, node: int, headers: Mapping[str, str]) -> dict[str, str | int]:
        """Return the file that a node may write a blob to, how much of it is there, and how much it is to be.

        Raises:
            LinkRefused: the blob belongs to no reply of that node, or the node has sent too many.
            ReplyTooLarge: it is larger than the server takes.
        """
        run, message, blob = _named(headers)
        if not self._state.replied(node, run, message) or not self._belongs(message, blob):
            raise LinkRefused(f"blob {blob.id[:12]}… is not of a reply by node {node}")
        if blob.size > self._max_reply:
            raise ReplyTooLarge(f"a reply of more than {self._max_reply} bytes")
        if self._blobs.has(blob.id):
            return {"file": "", "come": blob.size, "size": blob.size}
        held = {each for each in self._held.get(node, set()) if each in self._objects} | {blob.id}
        if len(held) > MOST_HELD:
            raise LinkRefused(f"node {node} has sent {MOST_HELD} replies that nobody has fetched yet")
        self._held[node] = held
        part = self._blobs.part(blob, str(node))
        self._coming[part.name] = node, blob
        come = part.stat().st_size if part.exists() else 0
        return {"file": part.name, "come": come, "size": blob.size}

    def finish(self, part: str) -> None:
        """Check a blob that has wholly come.

        Raises:
            NotAnnounced: this process does not know it: it was started anew meanwhile, or nobody may send it.
            WrongBlob: it is not what its name says; it is deleted.
        """
        if part not in self._coming:
            raise NotAnnounced(f"blob {part[:12]}… was not announced")
        node, blob = self._coming.pop(part)
        self._blobs.finish(blob, str(node))

    def _belongs(self, message: str, blob: Blob) -> bool:
        return blob_id(self._objects.get_object_tree(message)) == blob.id


def _named(headers: Mapping[str, str]) -> tuple[int, str, Blob]:
    """Return the run, message and blob that a request's headers name.

    Raises:
        LinkRefused: they name none.
    """
    run, size = headers.get(RUN_HEADER, ""), headers.get(SIZE_HEADER, "")
    if not (run.isdecimal() and size.isdecimal() and max(len(run), len(size)) <= 20):
        raise LinkRefused("it names no run, or no size")
    return int(run), headers.get(MESSAGE_HEADER, ""), Blob(headers.get(BLOB_HEADER, ""), int(size))
