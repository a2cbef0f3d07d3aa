"""The gateway: all that sites, and everybody else on the network, can reach. It forwards the Fleet API alone.

A request is looked at in this order: how often its address asked, its path and method, its headers' signature by an
enrolled key that was not revoked, whether that signature was used before, how often its node asked, the body's length.
Only then is the body read, within a time limit, and forwarded to the link; large arrays go by another way
(`gateway_blobs`). What is refused is counted and logged with who tried; the answer says no more than it must.
"""

import asyncio
import json
import logging
import time
from collections import Counter
from pathlib import Path

import httpx

from astrofed.server.service.asgi import Receive, Refused, Scope, Send, answer, headers_of
from astrofed.server.service.gateway_blobs import BLOB_PATHS, OCTETS, BlobRelay, Headers
from astrofed.server.service.home import ServerSettings
from astrofed.server.service.limits import Limiter
from astrofed.server.service.node_signature import Replays, SignatureChecker, Unauthentic
from astrofed.server.service.sites import Sites
from astrofed.shared.blobs import PULL_BLOB
from astrofed.shared.files import CannotWrite, write_atomically
from astrofed.shared.waiting import HELD_HEADER, LONGEST_WAIT_S

FLEET_PATHS = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
PROTOBUF = "application/protobuf"
FAILURES_PER_S, FAILURES_AT_ONCE = 0.5, 30.0  # requests without a good signature, for each address
BURST = 4.0  # seconds' worth of requests that may come at once
BODIES_AT_ONCE = 16  # so many bodies are in memory at the same time
REPORT_S = 2.0
log = logging.getLogger("astrofed.gateway")


class Counts:
    """What the gateway has seen, kept in a file for health checks, metrics and `astrofed server status`."""

    def __init__(self, path: Path) -> None:
        self._path, self._written = path, 0.0
        self.requests: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.last_seen: dict[str, float] = {}  # by site
        self.bytes_in = self.bytes_out = 0

    def served(self, site: str, path: str, status: int) -> None:
        """Count a site's request."""
        self.last_seen[site] = time.time()
        self.requests[f"{path.rpartition('/')[2]} {status}"] += 1

    def write(self) -> None:
        """Write the file, if there is room for it."""
        data = {
            "time": time.time(),
            "requests": dict(self.requests),
            "refused": dict(self.refused),
            "last_seen": self.last_seen,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }
        try:
            write_atomically(self._path, json.dumps(data).encode(), flush=False)
        except CannotWrite as error:
            log.warning("%s", error)


class Gateway:
    """The ASGI application."""

    def __init__(self, settings: ServerSettings, sites: Sites, link: Path, blobs: Path, counts: Counts) -> None:
        self._settings, self._counts = settings, counts
        self._checker, self._replays = SignatureChecker(sites), Replays(time.monotonic)
        per_address, per_node = settings.address_requests_per_s, settings.node_requests_per_s
        self._addresses, self._nodes = Limiter(per_address, BURST * per_address), Limiter(per_node, BURST * per_node)
        self._failures = Limiter(FAILURES_PER_S, FAILURES_AT_ONCE)
        self._bodies = asyncio.Semaphore(BODIES_AT_ONCE)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        transport = httpx.AsyncHTTPTransport(uds=str(link), limits=limits)
        self._link = httpx.AsyncClient(transport=transport, timeout=LONGEST_WAIT_S + 40.0)
        self._blobs = BlobRelay(blobs, self._ask_link, settings.request_timeout_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or refuse it."""
        if scope["type"] != "http":
            return  # uvicorn closes what is neither a request nor the lifespan that we don't take part in
        address = scope["client"][0] if scope.get("client") else "?"
        path = scope["path"]
        kind, more, quiet = "application/json", [], False
        try:
            site = self._admit(scope, address)
            if path in BLOB_PATHS:
                await self._blob(scope, receive, send, site)
                return
            forwarded = await self._forward(scope, receive, site)
            status, body = forwarded.status_code, forwarded.content
            kind = forwarded.headers.get("content-type", PROTOBUF)
            if path.endswith("/pull-messages"):
                more.append((HELD_HEADER, "1"))
            self._counts.served(site, path, status)
        except Refused as refused:
            status, body = refused.status, json.dumps({"detail": refused.public}).encode()
            more.append(("connection", "close"))
            self._counts.refused[refused.reason] += 1
            if refused.status in (401, 404, 405) and not self._failures.allows(address):
                status, body, quiet = 429, b'{"detail": "too many requests"}', True  # and no flood of lines in the log
            where = "".join(letter if letter.isprintable() else "?" for letter in path[:80])
            log.log(
                logging.DEBUG if quiet else logging.WARNING,
                "refused %s from %s, %s %s: %s",
                refused.who,
                address,
                scope["method"],
                where,
                refused.reason,
            )
        self._counts.bytes_out += len(body)
        await answer(send, status, kind, body, more)

    def _admit(self, scope: Scope, address: str) -> str:
        """Return the name of the site that asks.

        Raises:
            Refused: it may not.
        """
        if not self._addresses.allows(address):
            raise Refused(429, "too many requests", "too many requests from one address")
        if scope["path"] not in FLEET_PATHS | BLOB_PATHS:
            raise Refused(404, "Not Found", "no such path")
        if scope["method"] != "POST":
            raise Refused(405, "Method Not Allowed", "no such method")
        headers, is_blob = headers_of(scope), scope["path"] in BLOB_PATHS
        try:
            caller = self._checker.check(headers)
        except Unauthentic as error:
            raise Refused(401, error.public, error.reason, error.who) from None
        name = caller.site.name
        if not self._replays.is_new(caller.signed):
            raise Refused(401, "this request was made before", "replayed", f"somebody as {name}")
        if not self._nodes.allows(caller.site.fingerprint):
            raise Refused(429, "too many requests", "too many requests from one node", name)
        kind, limit = (OCTETS, self._settings.max_reply_mb) if is_blob else (PROTOBUF, self._settings.max_body_mb)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != kind:
            raise Refused(415, "Unsupported Media Type", f"not {kind}", name)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit * 1024 * 1024:
            raise Refused(413, f"a body may have {limit} MiB", "body too large", name)
        return name

    async def _blob(self, scope: Scope, receive: Receive, send: Send, site: str) -> None:
        """Have a blob sent or taken."""
        if scope["path"] == PULL_BLOB:
            self._counts.bytes_out += await self._blobs.give(scope, receive, send, site)
        else:
            self._counts.bytes_in += await self._blobs.take(scope, receive, send, site)
        self._counts.served(site, scope["path"], 200)

    @property
    def _limit(self) -> int:
        return self._settings.max_body_mb * 1024 * 1024

    async def _forward(self, scope: Scope, receive: Receive, site: str) -> httpx.Response:
        async with self._bodies:
            try:
                body = await asyncio.wait_for(self._read(receive, site), self._settings.request_timeout_s)
            except TimeoutError:
                raise Refused(408, "Request Timeout", "body too slow", site) from None
        self._counts.bytes_in += len(body)
        return await self._ask_link(scope["path"], body, scope["headers"], site)

    async def _ask_link(self, path: str, body: bytes, given: Headers, site: str) -> httpx.Response:
        headers = [(name, value) for name, value in given if name.startswith((b"flwr-", b"astrofed-"))]
        try:
            return await self._link.post(
                f"http://link{path}", content=body, headers=[*headers, (b"content-type", PROTOBUF.encode())]
            )
        except httpx.HTTPError as error:
            reason = f"the link does not answer: {type(error).__name__}"
            raise Refused(503, "the server is starting; try again", reason, site) from error

    async def _read(self, receive: Receive, site: str) -> bytes:
        parts, size = [], 0
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise Refused(400, "Bad Request", "body cut off", site)
            parts.append(event.get("body", b""))
            size += len(parts[-1])
            if size > self._limit:
                raise Refused(413, "Content Too Large", "body too large", site)
            if not event.get("more_body"):
                return b"".join(parts)
