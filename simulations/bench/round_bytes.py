"""The bytes of a round through the same TLS stack and nothing else: what no protocol over it can be faster than.

A process serves pieces of 5 MiB by uvicorn over TLS 1.3; four clients (httpx, a thread each) fetch the model and send
one back. Nothing is parsed, hashed, stored or added up.
"""

import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from astrofed.simulations.bench.free_port import free_port

PIECE = 5 * 2**20
PATIENCE_S = 60.0


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer a GET of /N with N bytes, and take in whatever else is sent."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    body = bytes(int(scope["path"][1:])) if scope["method"] == "GET" else b""
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Bytes:
    """A server that is up, and its clients."""

    def __init__(self, address: str, authority: Path, clients: int) -> None:
        context = ssl.create_default_context(cafile=str(authority))
        self._clients = [httpx.Client(base_url=address, verify=context, timeout=PATIENCE_S) for _ in range(clients)]
        self._pool = ThreadPoolExecutor(clients)

    def round(self, size: int) -> float:
        """Return the seconds in which every client fetches and sends so many bytes."""
        began = time.perf_counter()
        list(self._pool.map(lambda client: self._move(client, size), self._clients))
        return time.perf_counter() - began

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown()
        for client in self._clients:
            client.close()

    @staticmethod
    def _move(client: httpx.Client, size: int) -> None:
        pieces = [min(PIECE, size - start) for start in range(0, size, PIECE)]
        for piece in pieces:
            if len(client.get(f"/{piece}").raise_for_status().content) != piece:
                raise RuntimeError("a piece came short")
        for piece in pieces:
            client.post("/", content=bytes(piece)).raise_for_status()


@contextmanager
def bytes_server(certificate: Path, key: Path, authority: Path, clients: int) -> Iterator[Bytes]:
    """Serve with that certificate, and take the server down at the end."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", f"{__name__}:app", "--host", "127.0.0.1", "--port", str(port)]
    files = ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]
    quiet = ["--no-access-log", "--log-level", "warning", "--lifespan", "off"]
    process = subprocess.Popen([*command, *files, *quiet], stdin=subprocess.DEVNULL)
    made = Bytes(f"https://127.0.0.1:{port}", authority, clients)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                made.round(1)
                break
            except httpx.ConnectError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield made
    finally:
        made.close()
        process.terminate()
        process.wait()
