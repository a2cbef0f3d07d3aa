"""Messages as they lie on the disk and cross the pipe to the executor: bytes that need not be understood on the way."""

import json
import struct
from dataclasses import dataclass, field

from astrofed.shared.errors import AstrofedError

_MAGIC = b"astrofed sealed 1\n"


class Torn(AstrofedError):
    """Bytes that should be a sealed message and are none: a file cut short, or something else altogether."""


@dataclass(frozen=True)
class Sealed:
    """A message of Flower's: its envelope, the tree of its objects' ids, and the objects by id (SHA-256).

    Without objects it is a claim: a question that the server has handed out and whose objects it still keeps.
    """

    envelope: bytes
    tree: bytes
    objects: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the objects."""
        return sum(len(content) for content in self.objects.values())

    def pieces(self) -> list[bytes]:
        """Return what makes up the whole, one after the other, without a copy."""
        sizes = [len(self.envelope), len(self.tree), [[name, len(content)] for name, content in self.objects.items()]]
        header = json.dumps(sizes).encode()
        return [_MAGIC, struct.pack(">I", len(header)), header, self.envelope, self.tree, *self.objects.values()]

    def to_bytes(self) -> bytes:
        """Return the whole in one piece; the objects are copied once."""
        return b"".join(self.pieces())

    @classmethod
    def from_bytes(cls, data: bytes) -> "Sealed":
        """Return what `to_bytes` put into one piece.

        Raises:
            Torn: it is not whole.
        """
        start = len(_MAGIC) + 4
        if data[: len(_MAGIC)] != _MAGIC or len(data) < start:
            raise Torn("this is no sealed message")
        end = start + struct.unpack(">I", data[len(_MAGIC) : start])[0]
        try:
            envelope, tree, objects = json.loads(data[start:end])
            names = ["", "", *(str(name) for name, _ in objects)]
            lengths = [int(envelope), int(tree), *(int(size) for _, size in objects)]
        except (ValueError, TypeError) as error:
            raise Torn("a sealed message's header can't be read") from error
        if end + sum(lengths) != len(data) or min(lengths) < 0:
            raise Torn(f"a sealed message should have {end + sum(lengths)} bytes; it has {len(data)}")
        parts = []
        for length in lengths:
            parts.append(data[end : end + length])
            end += length
        return cls(parts[0], parts[1], dict(zip(names[2:], parts[2:], strict=True)))
