"""Frames over a local socket or a pair of pipes: a length of eight bytes, a kind of one byte, the rest."""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from astrofed.shared.errors import AstrofedError

_HEAD = struct.Struct(">QB")
LARGEST = 2**36


class Hung(AstrofedError):
    """The other side is gone, or sends what is no frame."""


class Channel(Protocol):
    """What of a socket is used."""

    def sendall(self, data: bytes, /) -> None:
        """Send all bytes (errors as a socket's)."""
        ...

    def recv_into(self, buffer: memoryview, /) -> int:
        """Receive at most as many bytes as the buffer has, and return how many; 0: the other side has closed."""
        ...


@dataclass(frozen=True)
class Pipes:
    """Two pipes, by their descriptors, as a channel."""

    reader: int
    writer: int

    def sendall(self, data: bytes) -> None:
        """See `Channel`."""
        view = memoryview(data)
        while len(view):
            view = view[os.write(self.writer, view) :]

    def recv_into(self, buffer: memoryview) -> int:
        """See `Channel`."""
        return os.readv(self.reader, [buffer])


def send(channel: Channel, kind: str, *pieces: bytes) -> None:
    """Send one frame, its data in pieces; `kind` is one character."""
    channel.sendall(_HEAD.pack(sum(map(len, pieces)), ord(kind)))
    for piece in pieces:
        if piece:
            channel.sendall(piece)


def receive(channel: Channel, wait: Callable[[], None] | None = None) -> tuple[str, bytes]:
    """Return the next frame's kind and data; `wait` is called before each read and may raise what ends the waiting.

    Raises:
        Hung: the other side closed the channel in the middle, or its frame is too long to be one.
    """
    length, kind = _HEAD.unpack(_exactly(channel, _HEAD.size, wait))
    if length > LARGEST:
        raise Hung(f"a frame of {length} bytes was announced")
    return chr(kind), bytes(_exactly(channel, length, wait))


def _exactly(channel: Channel, size: int, wait: Callable[[], None] | None) -> bytearray:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        if wait is not None:
            wait()
        count = channel.recv_into(view[done:])
        if not count:
            raise Hung("the other side closed the connection")
        done += count
    return data
