"""The link's process: its state behind a Unix socket that only this server's own processes can reach.

The gateway forwards requests of the Fleet API here, each authenticated again by its signature. Workers have a few paths
of their own under `/run/`. Whoever waits for a message is held until there is one, so nobody polls.

    astrofed server's supervisor starts it:  python -m astrofed.server.service.link_app HOME
"""

import asyncio
import json
import logging
import sqlite3
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.error import FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.object_store import NoObjectInStoreError
from sqlalchemy.exc import OperationalError

from astrofed.server.service.asgi import Receive, Scope, Send, answer, headers_of
from astrofed.server.service.frames import LARGEST_BODY, BadFrames, join_frames, split_frames
from astrofed.server.service.gateway_blobs import BLOB_COME
from astrofed.server.service.home import ServerHome
from astrofed.server.service.link_blobs import LinkBlobs, NotAnnounced
from astrofed.server.service.link_state import DELIVERY_S, FLEET, LinkRefused, LinkState, ReplyTooLarge, empty_pull
from astrofed.server.service.node_signature import Caller, SignatureChecker, Unauthentic
from astrofed.server.service.sites import Sites
from astrofed.shared.blobs import NO_ROOM, PULL_BLOB, PUSH_BLOB, WRONG_BYTES, WrongBlob
from astrofed.shared.packing import blob_id
from astrofed.shared.waiting import LONGEST_WAIT_S, WAIT_HEADER

PROTOBUF = "application/protobuf"
RECHECK_S = 1.0  # how soon a worker hears that a node went offline
T = TypeVar("T")
log = logging.getLogger("astrofed.link")


class LinkApp:
    """The ASGI application. Flower's state is worked on by one thread; everything else is in the event loop."""

    def __init__(self, state: LinkState, sites: Sites, max_reply: int) -> None:
        self._state = state
        self._checker = SignatureChecker(sites)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._for_node: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self._for_workers = asyncio.Event()
        self._blobs = LinkBlobs(state, max_reply)
        self._blob_paths = {PULL_BLOB: self._blobs.reading, PUSH_BLOB: self._blobs.writing}
        self._paths: dict[str, Callable[[bytes], Awaitable[tuple[int, bytes]]]] = {
            "/run/open": self._open,
            "/run/close": self._close,
            "/run/nodes": self._nodes,
            "/run/send": self._send,
            "/run/put": self._put,
            "/run/receive": self._receive,
            "/run/object": self._object,
            BLOB_COME: self._blob_come,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path, who = scope["path"], "a worker"
        given = await _read(receive)
        kind = PROTOBUF
        try:
            if path in FLEET:
                caller = self._checker.check(headers_of(scope))
                who = caller.site.name
                status, body = await self._fleet(path, headers_of(scope), given, caller)
            elif path in self._blob_paths:
                caller = self._checker.check(headers_of(scope))
                who = caller.site.name
                found = await self._in_thread(self._blob_paths[path], await self._node(caller), headers_of(scope))
                status, body = 200, json.dumps(found).encode()
            elif path in self._paths:
                status, body = await self._paths[path](given)
            else:
                status, body = (200, b"ready") if path == "/ready" else (404, b'{"detail": "Not Found"}')
        except Unauthentic as error:
            status, body = 401, json.dumps({"detail": error.public}).encode()
        except FlowerError as error:
            log.info("refused %s, %s: %s", who, path, error.message[:300])
            spec = API_ERROR_MAP[error.code]
            status, body = spec.http_status_code, json.dumps(error.to_json(spec.public_message)).encode()
        except (LinkRefused, BadFrames, NoObjectInStoreError, WrongBlob, ValueError, KeyError) as error:
            log.warning("refused %s, %s: %s: %s", who, path, type(error).__name__, str(error)[:300])
            status, body = 400, b'{"detail": "Bad Request"}'
            if isinstance(error, ReplyTooLarge):
                status, body = 413, b'{"detail": "Content Too Large"}'
        except (sqlite3.OperationalError, OperationalError) as error:  # Flower's state is reached through SQLAlchemy
            log.error("could not do what %s asked, %s: %s", who, path, str(error)[:300])
            status, body = NO_ROOM, b'{"detail": "Insufficient Storage"}'
        if status >= 400:
            kind = "application/json"
        await answer(send, status, kind, body)

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *arguments))

    async def _fleet(self, path: str, headers: dict[str, str], body: bytes, caller: Caller) -> tuple[int, bytes]:
        node = await self._node(caller)
        public_key = caller.site.public_key.encode()
        request = await self._in_thread(self._state.read, path, body, node, public_key)
        if path.endswith("/pull-messages") and not await self._wait_for_message(node, headers):
            return 200, empty_pull()
        found = await self._in_thread(self._state.answer, path, request, node)
        if path.endswith(("/push-object", "/push-messages")):
            self._tell_workers()
        return 200, found

    def _tell_workers(self) -> None:
        self._for_workers.set()
        self._for_workers = asyncio.Event()

    async def _blob_come(self, body: bytes) -> tuple[int, bytes]:
        """Check a blob that the gateway has wholly received; whoever waits for its message hears of it."""
        part = json.loads(body)["part"]
        try:
            await asyncio.to_thread(self._blobs.finish, part)
        except WrongBlob as error:
            log.warning("a reply is not taken: %s", error)
            return WRONG_BYTES, b'{"detail": "other bytes than announced"}'
        except NotAnnounced as error:
            log.info("%s", error)
            return 503, b'{"detail": "the server is starting; try again"}'
        self._tell_workers()
        return 200, b"{}"

    async def _node(self, caller: Caller) -> int:
        node = (await self._in_thread(self._state.nodes)).get(caller.site.fingerprint)
        if node is None:
            raise Unauthentic("no node", caller.site.name)
        return node

    async def _wait_for_message(self, node: int, headers: dict[str, str]) -> bool:
        """Hold a pull until there is a message for the node or its patience ends; return whether there is one."""
        try:
            wait = min(float(headers.get(WAIT_HEADER, "0")), LONGEST_WAIT_S)
        except ValueError:
            wait = 0.0
        deadline = time.monotonic() + wait
        while True:
            event = self._for_node[node]
            event.clear()
            if await self._in_thread(self._state.has_message, node):
                return True
            if (left := deadline - time.monotonic()) <= 0:
                return False
            try:
                await asyncio.wait_for(event.wait(), min(left, DELIVERY_S))
            except TimeoutError:
                continue

    async def _open(self, body: bytes) -> tuple[int, bytes]:
        asked = json.loads(body)
        run_id = await self._in_thread(self._state.open_run, asked["run"], [int(node) for node in asked["nodes"]])
        return 200, json.dumps({"run_id": run_id}).encode()

    async def _close(self, body: bytes) -> tuple[int, bytes]:
        await self._in_thread(self._state.end_runs, json.loads(body)["run"])
        return 200, b"{}"

    async def _nodes(self, _body: bytes) -> tuple[int, bytes]:
        nodes = await self._in_thread(self._state.nodes)
        online = await self._in_thread(self._state.online)
        return 200, json.dumps({digest: [node, node in online] for digest, node in nodes.items()}).encode()

    async def _send(self, body: bytes) -> tuple[int, bytes]:
        """Take messages: a header, a tree and an envelope for each, and objects.

        Answer with the objects that are missing, and the messages that can't be sent.
        """
        frames = split_frames(body)
        asked = json.loads(bytes(next(frames)))
        count = int(asked["messages"])
        trees = [ObjectTree.FromString(bytes(next(frames))) for _ in range(count)]
        messages = [ProtoMessage.FromString(bytes(next(frames))) for _ in range(count)]
        objects = [bytes(each) for each in frames]
        missing, refused = await self._in_thread(self._store, asked["run_id"], trees, messages, objects)
        if not missing:
            for message in messages:
                self._for_node[message.metadata.dst_node_id].set()
        return 200, json.dumps({"missing": missing, "refused": refused}).encode()

    def _store(
        self, run_id: int, trees: list[ObjectTree], messages: list[ProtoMessage], objects: list[bytes]
    ) -> tuple[list[str], list[str]]:
        if not self._state.is_open(run_id):
            raise LinkRefused(f"run {run_id} has ended")
        missing = {identifier for tree in trees for identifier in self._state.objects.preregister(run_id, tree)}
        for content in objects:
            missing.discard(self._state.put(content))
        if missing:
            return sorted(missing), []
        sent = [self._state.send(run_id, message, tree) for tree, message in zip(trees, messages, strict=True)]
        return [], [tree.object_id for tree, went in zip(trees, sent, strict=True) if not went]

    async def _put(self, body: bytes) -> tuple[int, bytes]:
        await self._in_thread(self._state.put, body)
        return 200, b"{}"

    async def _receive(self, body: bytes) -> tuple[int, bytes]:
        """Hold a worker until a reply to one of its messages is there, or one of its nodes is offline."""
        asked = json.loads(body)
        run_id, questions, deadline = asked["run_id"], asked["questions"], time.monotonic() + float(asked["wait"])
        if asked["received"]:
            await self._in_thread(self._state.forget, asked["received"])
        while True:
            event = self._for_workers
            replies, some = await self._in_thread(self._collect, run_id, questions)
            left = deadline - time.monotonic()
            if some or left <= 0:
                return 200, replies
            try:
                await asyncio.wait_for(event.wait(), min(left, RECHECK_S))
            except TimeoutError:
                continue

    def _collect(self, run_id: int, questions: list[str]) -> tuple[bytes, bool]:
        if not self._state.is_open(run_id):
            raise LinkRefused(f"run {run_id} has ended")
        replies = self._state.replies(run_id, questions)
        answered = {reply.question for reply in replies}
        offline = self._state.unreachable(each for each in questions if each not in answered)
        frames: list[bytes] = []
        room = LARGEST_BODY
        for reply in replies:
            content, room = self._state.contents(reply.tree, room)
            frames += [reply.message.SerializeToString(), reply.tree.SerializeToString(), join_frames(content)]
        seals = {blob: self._state.objects.blobs.seal(blob) for each in replies if (blob := blob_id(each.tree))}
        header = json.dumps({"offline": offline, "seals": seals}).encode()
        return join_frames([header, *frames]), bool(replies or offline)

    async def _object(self, body: bytes) -> tuple[int, bytes]:
        content = await self._in_thread(self._state.objects.get, json.loads(body)["id"])
        return 200, content or b""


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        event = await receive()
        parts.append(event.get("body", b""))
        if not event.get("more_body"):
            return b"".join(parts)


def main(home: ServerHome) -> None:
    """Serve until asked to end."""
    import uvicorn

    home.link_socket.unlink(missing_ok=True)
    sites = Sites(home.sites)
    max_reply = home.settings().max_reply_mb * 1024 * 1024
    state = LinkState(home.link, sites, max_reply)
    config = uvicorn.Config(
        LinkApp(state, sites, max_reply),
        uds=str(home.link_socket),
        log_config=None,
        lifespan="off",
        ws="none",
        access_log=False,
        server_header=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=2,
    )
    try:
        uvicorn.Server(config).run()
    finally:
        state.close()


if __name__ == "__main__":
    from astrofed.server.service.process import begin

    with begin("link", Path(sys.argv[1])) as own_home:
        main(own_home)
