"""Blobs between a site and its coordinator: one request each way, however large, that goes on where it was cut off.

Nothing is kept in memory but the step that is being moved. What comes is used only if it has the right hash.
"""

import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path

from astrofed.client.service.refusals import BadAnswer, Unreachable, in_words, refusal
from astrofed.shared.blobs import (
    BLOB_HEADER,
    MESSAGE_HEADER,
    NO_ROOM,
    PULL_BLOB,
    PUSH_BLOB,
    RUN_HEADER,
    SIZE_HEADER,
    START_HEADER,
    STEP,
    WRONG_BYTES,
    Blob,
    Blobs,
    WrongBlob,
    open_part,
    room_for,
    write_all,
)
from astrofed.shared.files import CannotWrite

STALLED_S = 60.0  # without a byte moving
_LONGEST_ANSWER = 64 * 1024
OCTETS = "application/octet-stream"


class BlobTransfer:
    """Moves blobs between a folder and a server; used by one thread."""

    def __init__(
        self, address: str, context: ssl.SSLContext, sign: Callable[[], Mapping[str, str]], blobs: Blobs
    ) -> None:
        """`address`: host:port; `sign` returns the headers of a request that is made now."""
        self._address, self._context, self._sign, self._blobs = address, context, sign, blobs

    def fetch(self, run: int, message: str, blob: Blob) -> None:
        """Fetch a message's blob into the folder, unless it is there.

        Raises:
            Unreachable: the server was not reached, or the connection was cut; what has come stays for the next try.
            WrongBlob: what came is something else.
            CannotWrite: there is no room for it here; nothing of it stays.
            NotAdmitted, BadAnswer: see `refusals`.
        """
        if self._blobs.has(blob.id):
            with suppress(WrongBlob):
                return self._blobs.check(blob)
        begun = self._pull(run, message, blob)
        try:
            self._blobs.finish(blob)
        except WrongBlob:
            if not begun:
                raise
            self._pull(run, message, blob)  # what was here from a try before was no good, as after a power cut
            self._blobs.finish(blob)

    def send(self, run: int, message: str, blob: Blob) -> None:
        """Send a reply's blob from the folder.

        Raises:
            WrongBlob: it is not here any more as it was written.
            TooLarge: the server takes none so large.
            Unreachable, NotAdmitted, BadAnswer: as `fetch`.
        """
        file = self._blobs.open(blob)
        try:
            come = self._push(run, message, blob, file.descriptor, 0, 0)
            if come < blob.size:
                come = self._push(run, message, blob, file.descriptor, come, blob.size)
        except _OtherBytes as error:
            self._blobs.check(blob)  # if the fault is this disk's, no further try can mend it
            raise Unreachable(f"a reply did not come to {self._address} as it was sent; it is sent anew") from error
        if come != blob.size:
            raise Unreachable(
                f"{self._address} has {come} of a reply's {blob.size} bytes; the rest has to be sent anew"
            )

    def _push(self, run: int, message: str, blob: Blob, file: int, start: int, stop: int) -> int:
        """Send a span of a blob; return how many bytes of it the server has then."""
        with self._asked(PUSH_BLOB, run, message, blob, start, (file, stop)) as response:
            answer = response.read(_LONGEST_ANSWER)
        if not answer.isdigit() or len(answer) > 18:
            raise BadAnswer(f"{self._address} answered push-blob with something that is no number of bytes")
        return int(answer)

    def _pull(self, run: int, message: str, blob: Blob) -> int:
        """Fetch what is not there of a blob; return how much was."""
        with self._room(blob) as (file, start):
            if start < blob.size:
                with self._asked(PULL_BLOB, run, message, blob, start) as response:
                    _receive(response, file, start, blob.size)
        return start

    @contextmanager
    def _room(self, blob: Blob) -> Iterator[tuple[int, int]]:
        """Give the file of a blob on its way, and how much of it is there."""
        part = self._blobs.part(blob)
        try:
            file = _opened(part, blob)
            try:
                if (start := os.fstat(file).st_size) > blob.size:
                    os.truncate(file, start := 0)
                yield file, start
            finally:
                os.close(file)
        except _NoRoom as error:
            part.unlink(missing_ok=True)
            raise CannotWrite(
                f"{self._blobs.folder} has no room for a message's {blob.size:,} bytes: {error}; free so much there"
            ) from error

    @contextmanager
    def _asked(
        self, path: str, run: int, message: str, blob: Blob, start: int, body: tuple[int, int] | None = None
    ) -> Iterator[HTTPResponse]:
        """Make a request, a file's bytes from `start` to a stop being its body; give the answer, if it is good."""
        headers = {
            **self._sign(),
            "content-type": OCTETS,
            RUN_HEADER: str(run),
            MESSAGE_HEADER: message,
            BLOB_HEADER: blob.id,
            SIZE_HEADER: str(blob.size),
            START_HEADER: str(start),
            "content-length": str(max(0, body[1] - start) if body is not None else 0),
        }
        connection = HTTPSConnection(self._address, timeout=STALLED_S, context=self._context)
        try:
            connection.putrequest("POST", path, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            if body is not None:
                _send(connection, body[0], start, body[1])
            with connection.getresponse() as response:
                if response.status == WRONG_BYTES:
                    raise _OtherBytes
                if response.status == NO_ROOM:
                    raise Unreachable(
                        f"{self._address} has no room for a reply's {blob.size:,} bytes: its disk is full (HTTP "
                        f"{NO_ROOM}); its operator has to free space"
                    )
                if response.status != 200:
                    told = {name.lower(): value for name, value in response.getheaders()}
                    raise refusal(self._address, path, response.status, told)
                yield response
        except (OSError, HTTPException) as error:
            raise Unreachable(f"{self._address} can't be reached: {in_words(error)}") from error
        finally:
            connection.close()


class _NoRoom(Exception):
    """The disk took no more of a blob."""


class _OtherBytes(Exception):
    """What came at the server was not what was announced."""


def _opened(part: Path, blob: Blob) -> int:
    try:
        room_for(part, blob.size)
        return open_part(part)
    except OSError as error:
        raise _NoRoom(error.strerror or "the disk is full") from error


def _send(connection: HTTPSConnection, file: int, start: int, stop: int) -> None:
    """Send a file's bytes; a server that closes the connection meanwhile has answered, and why is to be read there."""
    for at in range(start, stop, STEP):
        count = min(STEP, stop - at)
        try:
            data = os.pread(file, count, at)
        except OSError as error:
            raise WrongBlob(f"a reply's arrays can't be read from this disk any more: {error.strerror}") from error
        if len(data) != count:
            raise WrongBlob("a reply's arrays were cut short on this disk")
        try:
            connection.send(data)
        except (ConnectionError, ssl.SSLError):
            return


def _receive(response: HTTPResponse, file: int, start: int, stop: int) -> None:
    room = memoryview(bytearray(STEP))
    while start < stop:
        count = response.readinto(room[: min(STEP, stop - start)])
        if not count:
            raise HTTPException("the connection was cut")
        try:
            write_all(file, room[:count], start)
        except OSError as error:
            raise _NoRoom(error.strerror or "the disk is full") from error
        start += count
