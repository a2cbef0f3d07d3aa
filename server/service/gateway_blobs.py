"""The gateway's way for large arrays: between a site's connection and a file, a step at a time and never in memory.

The link says first whether this site may read or write that blob (`link_blobs`). Bytes of a reply go to a file of the
site's own until all have come and the link has checked them; who is cut off goes on from there.
"""

import asyncio
import json
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from astrofed.server.service.asgi import Receive, Refused, Scope, Send, answer, headers_of
from astrofed.shared.blobs import (
    NO_ROOM,
    PULL_BLOB,
    PUSH_BLOB,
    START_HEADER,
    STEP,
    open_part,
    room_for,
    write_all,
)

BLOB_COME = "/run/blob-come"
BLOB_PATHS = frozenset({PULL_BLOB, PUSH_BLOB})
OCTETS = "application/octet-stream"
log = logging.getLogger("astrofed.gateway")
AT_ONCE = 2  # blobs of one site that are moved at the same time
Headers = Sequence[tuple[bytes, bytes]]
AskLink = Callable[[str, bytes, Headers, str], Awaitable[httpx.Response]]


class BlobRelay:
    """Moves blobs for sites that have been admitted."""

    def __init__(self, folder: Path, ask_link: AskLink, patience_s: float) -> None:
        """`patience_s`: how long one step may take."""
        self._folder, self._ask_link, self._patience_s = folder, ask_link, patience_s
        self._moving: Counter[str] = Counter()

    async def give(self, scope: Scope, receive: Receive, send: Send, site: str) -> int:
        """Send a blob from a place on; return how many bytes.

        Raises:
            Refused: the site may not have it.
        """
        with self._turn(site):
            await self._nothing_more(receive, site)
            found, start = await self._ask(scope, site), _number(scope, START_HEADER, site)
            if start > (size := int(found["size"])):
                raise Refused(400, "Bad Request", "a blob from beyond its end", site)
            try:
                file = os.open(self._folder / found["file"], os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise Refused(503, "the blob is gone", f"a blob can't be read: {error.strerror}", site) from error
            left = asyncio.ensure_future(receive())  # nothing more comes but the news that the site is gone
            try:
                headers = [(b"content-type", OCTETS.encode()), (b"content-length", str(size - start).encode())]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                for at in range(start, size, STEP):
                    data = await asyncio.to_thread(os.pread, file, min(STEP, size - at), at)
                    async with asyncio.timeout(self._patience_s):
                        await send({"type": "http.response.body", "body": data, "more_body": True})
                    if left.done():
                        return at - start
                await send({"type": "http.response.body", "body": b""})
                return size - start
            except TimeoutError:
                log.warning("%s takes a blob too slowly and is cut off", site)
                return 0
            finally:
                left.cancel()
                os.close(file)

    async def take(self, scope: Scope, receive: Receive, send: Send, site: str) -> int:
        """Take bytes of a blob from a place on, and answer with how many are there now; return how many came.

        Raises:
            Refused: the site may not send it, or it does not go on where it was; or the disk is full.
        """
        with self._turn(site):
            found, start = await self._ask(scope, site), _number(scope, START_HEADER, site)
            come, size, end = int(found["come"]), int(found["size"]), start
            if start > come:
                raise Refused(409, f"{come} bytes are here", "a blob that leaves out bytes", site)
            if not found["file"]:  # there is this content already
                await self._nothing_more(receive, site)
            else:
                path = self._folder / found["file"]
                with _told_if_full(site):
                    room_for(path, size)
                end = await self._write(receive, path, start, size, site)
                if max(come, end) == size:
                    asked = json.dumps({"part": found["file"]}).encode()
                    _good(await self._ask_link(BLOB_COME, asked, (), site), site)
            await answer(send, 200, OCTETS, str(max(come, end)).encode())
            return end - start

    async def _write(self, receive: Receive, path: Path, at: int, size: int, site: str) -> int:
        """Write what comes to a file; return where it ends."""
        with _told_if_full(site), _open(path) as file:
            more = True
            while more:
                step = bytearray()
                try:
                    async with asyncio.timeout(self._patience_s):
                        while more and len(step) < STEP:
                            more = await self._read(receive, step, site)
                except Refused:  # cut off: what has come need not come again
                    write_all(file, memoryview(step)[: size - at], at)
                    raise
                except TimeoutError:
                    raise Refused(408, "Request Timeout", "body too slow", site) from None
                if at + len(step) > size:
                    raise Refused(413, "Content Too Large", "more of a blob than was announced", site)
                await asyncio.to_thread(write_all, file, memoryview(step), at)
                at += len(step)
        return at

    async def _nothing_more(self, receive: Receive, site: str) -> None:
        if await self._read(receive, rest := bytearray(), site) or rest:
            raise Refused(400, "Bad Request", "a body where none is wanted", site)

    @staticmethod
    async def _read(receive: Receive, room: bytearray, site: str) -> bool:
        """Put what comes next at the end of `room`; return whether more is to come."""
        event = await receive()
        if event["type"] == "http.disconnect":
            raise Refused(400, "Bad Request", "body cut off", site)
        room += event.get("body", b"")
        return bool(event.get("more_body"))

    async def _ask(self, scope: Scope, site: str) -> dict[str, Any]:
        found: dict[str, Any] = _good(await self._ask_link(scope["path"], b"", scope["headers"], site), site).json()
        return found

    @contextmanager
    def _turn(self, site: str) -> Iterator[None]:
        """Count a site's blobs that are being moved."""
        if self._moving[site] >= AT_ONCE:
            raise Refused(429, "too many blobs at once", "too many blobs at once", site)
        self._moving[site] += 1
        try:
            yield
        finally:
            self._moving[site] -= 1


@contextmanager
def _open(path: Path) -> Iterator[int]:
    file = open_part(path)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def _told_if_full(site: str) -> Iterator[None]:
    """Refuse what the disk does not take; what has come stays, so that it goes on when there is room."""
    try:
        yield
    except OSError as error:
        reason = f"a blob can't be written: {error.strerror}"
        raise Refused(NO_ROOM, "the server's disk is full", reason, site) from error


def _number(scope: Scope, header: str, site: str) -> int:
    given = headers_of(scope).get(header, "")
    if not given.isdecimal() or len(given) > 20:
        raise Refused(400, "Bad Request", f"no number as {header}", site)
    return int(given)


def _good(answered: httpx.Response, site: str) -> httpx.Response:
    if answered.status_code != 200:
        public = str(answered.json().get("detail", "refused"))
        raise Refused(answered.status_code, public, f"the link refuses a blob: {public}", site)
    return answered
