"""A run's grid over the link: sends each message signed and packed, and waits for the replies without polling.

Large arrays are written to the link's folder of blobs, once for all sites, and read there where replies have left them.

What a node says of itself within a reply counts for nothing: who replied to what is what the link has checked.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from astrofed.server.service.frames import LARGEST_BODY, join_frames, split_frames
from astrofed.server.service.link_objects import object_ids
from astrofed.shared import packing, records
from astrofed.shared.blobs import NO_ROOM, Blobs
from astrofed.shared.errors import AstrofedError, UserMistake

LINK_PATIENCE_S = 120.0  # a link that was killed is back within seconds
HOLD_S = 20.0
UNREADABLE, OFFLINE = 2, 3  # error codes of the replies that this grid makes up
log = logging.getLogger("astrofed.worker")


class LinkLost(AstrofedError):
    """The link ended this run, or was not reached for too long."""


class LinkFull(UserMistake):
    """The link has no room for messages."""


class LinkClient:
    """Asks the link over its socket; while it restarts, asks again."""

    def __init__(self, socket: Path) -> None:
        self._client = httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=HOLD_S + 40.0)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def ask(self, path: str, body: bytes) -> bytes:
        """Return the answer's body.

        Raises:
            LinkLost: the link refuses, or isn't there for too long.
            LinkFull: its disk is full.
        """
        deadline = time.monotonic() + LINK_PATIENCE_S
        while True:
            try:
                response = self._client.post(f"http://link{path}", content=body)
            except httpx.HTTPError as error:
                if time.monotonic() > deadline:
                    raise LinkLost(f"the link does not answer: {type(error).__name__}") from error
                time.sleep(0.2)
                continue
            if response.status_code == NO_ROOM:
                raise LinkFull("the disk on which the link keeps messages is full; free space, then resume the run")
            if response.status_code != 200:
                raise LinkLost(f"the link refuses {path} ({response.status_code}); its log says why")
            return response.content

    def ask_json(self, path: str, **asked: Any) -> Any:
        """Ask with a JSON object; return the one that is the answer."""
        return json.loads(self.ask(path, json.dumps(asked).encode()))


class LinkGrid(Grid):
    """The nodes of a run's sites, in the plan's order.

    Args:
        socket: the link's.
        run: the run's name.
        sites: by site's name, the fingerprint of its node's key.
        sign: returns the entries of a "config" record that carry a plan, signed.
        blobs: the folder of the link's blobs, where large arrays lie.
    """

    def __init__(
        self, socket: Path, run: str, sites: Mapping[str, str], sign: Callable[[str], Mapping[str, Any]], blobs: Path
    ) -> None:
        self._link, self._name, self._sign, self._blobs = LinkClient(socket), run, sign, Blobs(blobs)
        known = self._link.ask_json("/run/nodes")
        self.nodes = {name: int(known[digest][0]) for name, digest in sites.items() if digest in known}
        self._sites, self._names = dict(sites), {node: name for name, node in self.nodes.items()}
        self._run_id = int(self._link.ask_json("/run/open", run=run, nodes=list(self.nodes.values()))["run_id"])
        self._asked: dict[str, Message] = {}  # what waits for a reply
        self._received: list[str] = []  # what the link may forget
        self._refused: set[str] = set()  # what could not be sent
        self.bytes_sent = 0
        # Flower's Message constructor reads the sender's identity from here.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self._run_id, SUPERLINK_NODE_ID, 1

    def close(self) -> None:
        """End the run at the link."""
        try:
            self._link.ask_json("/run/close", run=self._name)
        finally:
            self._link.close()

    def set_run(self, run: Any) -> None:
        """Take over the id of a run that is open at the link; a grid's own is opened when it is made."""
        self._run_id = TaskIdentity.run_id = int(run.run_id)

    @property
    def run(self) -> Any:
        """Flower's description of this run."""
        from flwr.supercore.run import Run

        return Run.create_empty(run_id=self._run_id)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message (deprecated by Flower in favour of the `Message` constructor)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def online(self) -> list[str]:
        """Return which of the run's sites are connected now, in the plan's order."""
        known = self._link.ask_json("/run/nodes")
        return [name for name, digest in self._sites.items() if known.get(digest, (0, False))[1]]

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are connected now, in the plan's order."""
        return [self.nodes[name] for name in self.online() if name in self.nodes]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; return their ids."""
        return self._push(list(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that have come, each once."""
        return self._pull(list(message_ids), 0.0)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages; return the replies that come within `timeout` seconds, in the order of the messages.

        A node that is offline, or whose reply can't be read, is answered for by an error.
        """
        deadline = time.monotonic() + timeout if timeout is not None else None
        asked = self._push(list(messages))
        found: dict[str, Message] = {}
        while missing := [each for each in asked if each not in found]:
            left = HOLD_S if deadline is None else min(HOLD_S, deadline - time.monotonic())
            if left <= 0:
                break
            found.update({reply.metadata.reply_to_message_id: reply for reply in self._pull(missing, left)})
        for late in missing:
            self._received.append(late)
            del self._asked[late]
        return [found[each] for each in asked if each in found]

    def _push(self, messages: list[Message]) -> list[str]:
        """Send messages with all objects that the link lacks; return their ids."""
        if not messages:
            return []
        contents: dict[int, RecordDict] = {}
        asked: dict[str, Message] = {}
        objects: dict[str, bytes] = {}
        blobs: dict[str, RecordDict] = {}  # what each was made of
        trees, envelopes = [], []
        with no_object_id_recompute():
            for message in messages:
                plain = message.content
                if id(plain) not in contents:
                    contents[id(plain)] = packing.pack(self._signed_content(plain), self._blobs)
                packed = records.with_content(message, contents[id(plain)])
                identifier = packed.object_id
                message.metadata.__dict__["_message_id"] = identifier
                nested = get_all_nested_objects(packed)
                objects.update({key: each.deflate() for key, each in nested.items() if key not in objects})
                tree = get_object_tree(packed)
                if (blob := packing.blob_of(packed.content.config_records[packing.NAME])) is not None:
                    tree.children[0].children[0].children.add(object_id=blob.id)
                    self.bytes_sent += 0 if blob.id in blobs else blob.size
                    blobs[blob.id] = plain
                trees.append(tree.SerializeToString())
                empty = records.with_content(message, RecordDict())
                envelopes.append(message_to_proto(empty).SerializeToString())
                asked[identifier] = message
        self._transfer(trees, envelopes, objects, blobs)
        self._asked.update(asked)
        return list(asked)

    def _transfer(
        self, trees: list[bytes], envelopes: list[bytes], objects: dict[str, bytes], blobs: Mapping[str, RecordDict]
    ) -> None:
        self.bytes_sent += sum(len(content) for content in objects.values())
        header = json.dumps({"run_id": self._run_id, "messages": len(trees)}).encode()
        first = join_frames([header, *trees, *envelopes])
        small = [content for content in objects.values() if len(content) <= LARGEST_BODY // 8]
        inline = small if sum(map(len, small)) <= LARGEST_BODY else []
        answer = json.loads(self._link.ask("/run/send", first + join_frames(inline)))
        if answer["missing"]:
            for identifier in answer["missing"]:
                if identifier in blobs:  # deleted between its writing and its message
                    packing.pack(self._signed_content(blobs[identifier]), self._blobs)
                else:
                    self._link.ask("/run/put", objects[identifier])
            answer = json.loads(self._link.ask("/run/send", first))
        if answer["missing"]:
            raise LinkLost(f"the link still lacks {len(answer['missing'])} objects of messages that it was sent")
        self._refused.update(answer["refused"])

    def _signed_content(self, content: RecordDict) -> RecordDict:
        config = content["config"] if "config" in content else ConfigRecord()
        assert isinstance(config, ConfigRecord)
        signed = ConfigRecord({**config, **self._sign(str(config["plan"]))})
        return records.content({**content, "config": signed})

    def _pull(self, questions: list[str], wait: float) -> list[Message]:
        replies = [self._error(each, OFFLINE, "the site was revoked") for each in questions if each in self._refused]
        if not replies:
            replies = self._ask_for(questions, wait)
        for reply in replies:
            question = reply.metadata.reply_to_message_id
            self._received.append(question)
            self._refused.discard(question)
            del self._asked[question]
        return replies

    def _ask_for(self, questions: list[str], wait: float) -> list[Message]:
        received, self._received = self._received, []
        asked = {"run_id": self._run_id, "questions": questions, "wait": wait, "received": received}
        frames = split_frames(self._link.ask("/run/receive", json.dumps(asked).encode()))
        header = json.loads(bytes(next(frames)))
        replies = [self._error(each, OFFLINE, "the site is offline") for each in header["offline"]]
        for envelope in frames:
            proto, tree = ProtoMessage.FromString(bytes(envelope)), ObjectTree.FromString(bytes(next(frames)))
            contents = {get_object_id(bytes(each)): bytes(each) for each in split_frames(bytes(next(frames)))}
            replies.append(self._open(proto, tree, contents, header["seals"]))
        return replies

    def _open(
        self, proto: ProtoMessage, tree: ObjectTree, contents: dict[str, bytes], seals: Mapping[str, int]
    ) -> Message:
        """Return a node's reply; one that can't be read is an error reply that says so."""
        envelope = message_from_proto(proto)
        if envelope.has_error():
            return envelope
        blob = packing.blob_id(tree)
        for identifier in object_ids(tree):
            if identifier not in contents and identifier != blob:
                contents[identifier] = self._link.ask("/run/object", json.dumps({"id": identifier}).encode())
        try:
            inner = inflate_object_from_contents(tree.object_id, contents)
            content = inner.content if isinstance(inner, Message) else None
            if content is None:
                raise TypeError(f"a {type(inner).__name__} is no message")
            plain = self._unpacked(content, blob, seals)
        except Exception as error:  # noqa: BLE001 - bytes from outside: whatever they break is that site's failure alone
            reason = f"the reply can't be read: {type(error).__name__}: {str(error)[:200]}"
            return self._error(proto.metadata.reply_to_message_id, UNREADABLE, reason)
        name, site = self._names.get(proto.metadata.src_node_id, ""), plain.get("site")
        if isinstance(site, ConfigRecord) and site.get("name") != name:
            reason = f"{name}: its node calls itself {str(site.get('name'))[:80]!r}"
            return self._error(proto.metadata.reply_to_message_id, UNREADABLE, reason)
        return records.with_content(envelope, plain)

    def _unpacked(self, content: RecordDict, allowed: str | None, seals: Mapping[str, int]) -> RecordDict:
        """Return a reply's content; the only blob that it may name is its own."""
        if not packing.is_packed(content):
            return content
        named = packing.blob_of(content.config_records[packing.NAME])
        if named is not None and named.id != allowed:
            raise packing.MalformedPack("the reply names a blob that is not its own")
        if named is not None:
            self._blobs.check(named, seals.get(named.id))  # the link's: it was right when it came
        return packing.unpack(content, self._blobs)

    def _error(self, question: str, code: int, reason: str) -> Message:
        """Return the reply that stands for one that can't be had."""
        return Message(Error(code=code, reason=reason), reply_to=self._asked[question])
