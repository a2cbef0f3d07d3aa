"""The gateway's way for blobs at its faults: a disk that is full before or within a blob keeps what has come."""

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from astrofed.server.service import gateway_blobs
from astrofed.server.service.asgi import Refused
from astrofed.server.service.gateway_blobs import BLOB_COME, BlobRelay
from astrofed.shared.blobs import PUSH_BLOB, STEP, write_all

CONTENT = bytes(range(256)) * (3 * STEP // 256)


class Relay:
    """A relay whose link lets everybody write into one file."""

    def __init__(self, folder: Path) -> None:
        self.part, self.size, self.asked = folder / "part", len(CONTENT), list[str]()
        self.relay = BlobRelay(folder, self.ask_link, 5.0)

    async def ask_link(self, path: str, *_: Any) -> httpx.Response:
        self.asked.append(path)
        come = self.part.stat().st_size if self.part.exists() else 0
        return httpx.Response(200, json={"file": "part", "come": come, "size": self.size})

    def push(self, start: int, data: bytes) -> bytes:
        """Send bytes from a place on; return the answer."""
        pieces = [data[at : at + STEP // 4] for at in range(0, len(data), STEP // 4)] or [b""]
        events = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        events[-1]["more_body"] = False
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return events.pop(0)

        async def send(event: dict[str, Any]) -> None:
            sent.append(event)

        headers = [(b"astrofed-start", str(start).encode())]
        asyncio.run(self.relay.take({"path": PUSH_BLOB, "headers": headers}, receive, send, "tess"))
        answer: bytes = sent[-1]["body"]
        return answer


def test_a_disk_that_fills_up_keeps_what_has_come_and_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = Relay(tmp_path)

    def full(file: int, data: memoryview, at: int) -> None:
        if at >= 2 * STEP:
            write_all(file, data[:1000], at)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(file, data, at)

    monkeypatch.setattr(gateway_blobs, "write_all", full)
    with pytest.raises(Refused, match="can't be written: No space left") as caught:
        relay.push(0, CONTENT)
    assert (caught.value.status, caught.value.public) == (507, "the server's disk is full")
    assert relay.part.read_bytes() == CONTENT[: 2 * STEP + 1000]
    monkeypatch.setattr(gateway_blobs, "write_all", write_all)
    assert relay.push(0, b"") == str(2 * STEP + 1000).encode()
    assert BLOB_COME not in relay.asked
    assert relay.push(2 * STEP + 1000, CONTENT[2 * STEP + 1000 :]) == str(len(CONTENT)).encode()
    assert relay.part.read_bytes() == CONTENT and relay.asked[-1] == BLOB_COME


def test_what_has_no_room_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    relay.size = 2**60
    with pytest.raises(Refused, match="No space left") as caught:
        relay.push(0, b"")
    assert caught.value.status == 507 and not relay.part.exists()
