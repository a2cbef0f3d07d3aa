"""Several pieces of bytes in one body: how worker and link hand over messages with all of their objects."""

from collections.abc import Iterable, Iterator

LARGEST_BODY = 32 * 1024 * 1024
"""Bytes of objects that travel in one body; what has no room is handed over by itself."""


class BadFrames(ValueError):
    """Bytes that are not a sequence of whole frames."""


def join_frames(frames: Iterable[bytes]) -> bytes:
    """Return frames as one body, each after its length in 8 bytes, big-endian."""
    return b"".join(part for frame in frames for part in (len(frame).to_bytes(8), frame))


def split_frames(body: bytes) -> Iterator[memoryview]:
    """Yield the frames of a body, without copying them.

    Raises:
        BadFrames: the body ends within a frame.
    """
    view, position = memoryview(body), 0
    while position < len(view):
        end = position + 8 + int.from_bytes(view[position : position + 8])
        if end > len(view) or position + 8 > len(view):
            raise BadFrames(f"a frame that begins at byte {position} ends beyond the body's {len(view)} bytes")
        yield view[position + 8 : end]
        position = end
