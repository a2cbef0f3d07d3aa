"""The link: Flower's state of nodes, runs and messages, and what its Fleet API does with them. Not safe for threads.

Flower's SuperLink has three APIs on one port. Two of them let a caller start runs that execute code, so here they
don't exist: Flower's own handlers of the Fleet API work on Flower's own state, and what a worker needs is below. Each
worker's run is a run of Flower's in a federation of its own, to which only the nodes of its sites belong; Flower itself
refuses messages to, and replies from, all others.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.run_pb2 import GetRunRequest
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.server.superlink.linkstate.utils import dict_to_message
from flwr.supercore.constant import NodeStatus, TaskType
from flwr.supercore.utils import int64_to_uint64, uint64_to_int64
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.servicer.fleet import fleet_handlers

from astrofed.server.service.link_objects import MessageObjects, object_ids
from astrofed.server.service.sites import Sites

STATE, OBJECTS = "state.sqlite", "objects.sqlite"
HEARTBEAT_S = 30.0
DELIVERY_S = 5.0  # a node that asks for messages again after so long has not got the one it was sent
MOST_OBJECTS = 20_000  # of one reply
_SESSIONS = 10_000
Handler = Callable[[Any, SqlLinkState], Any]


class LinkRefused(Exception):
    """A request that contradicts the state; `reason` is for the log, nothing of it for the caller."""


class ReplyTooLarge(LinkRefused):
    """A reply that is larger than the server takes."""


@dataclass(frozen=True)
class Reply:
    """A node's reply with all of its objects in the store."""

    message: ProtoMessage
    tree: ObjectTree
    question: str  # id of the message that it answers


class _RunFederations(NoOpFederationManager):
    """Each run's federation: the nodes of its sites and the server itself, and nobody else."""

    def __init__(self, objects: MessageObjects) -> None:
        super().__init__()
        self._objects = objects

    def exists(self, federation_id: str) -> bool:
        """Whether there is a federation of that id."""
        return bool(self._objects.members(federation_id))

    def filter_nodes(self, node_ids: set[int], federation_id: str) -> set[int]:
        """Return those of the nodes that belong to a federation."""
        return node_ids & (self._objects.members(federation_id) | {SUPERLINK_NODE_ID})

    def has_node(self, node_id: int, federation_id: str) -> bool:
        """Whether a node belongs to a federation."""
        return node_id in self._objects.members(federation_id)


def _with_store(handler: Callable[..., Any]) -> Handler:
    return lambda request, state: handler(request=request, state=state, store=state.object_store)


def _plain(handler: Callable[..., Any]) -> Handler:
    return lambda request, state: handler(request=request, state=state)


def _refusing(handler: Callable[..., Any]) -> Handler:
    return lambda request, state: handler(request=request, state=state, enable_supernode_auth=True)


FLEET: dict[str, tuple[type[Any], Handler]] = {
    "/v1/fleet/register-node": (RegisterNodeFleetRequest, _refusing(fleet_handlers.register_node)),
    "/v1/fleet/unregister-node": (UnregisterNodeFleetRequest, _refusing(fleet_handlers.unregister_node)),
    "/v1/fleet/activate-node": (ActivateNodeRequest, _plain(fleet_handlers.activate_node)),
    "/v1/fleet/deactivate-node": (DeactivateNodeRequest, _plain(fleet_handlers.deactivate_node)),
    "/v1/fleet/send-node-heartbeat": (SendNodeHeartbeatRequest, _plain(fleet_handlers.send_node_heartbeat)),
    "/v1/fleet/pull-messages": (PullMessagesRequest, _with_store(fleet_handlers.pull_messages)),
    "/v1/fleet/push-messages": (PushMessagesRequest, _plain(fleet_handlers.push_messages)),
    "/v1/fleet/get-run": (GetRunRequest, _plain(fleet_handlers.get_run)),
    "/v1/fleet/get-fab": (GetFabRequest, _plain(fleet_handlers.get_fab)),
    "/v1/fleet/push-object": (PushObjectRequest, _plain(fleet_handlers.push_object)),
    "/v1/fleet/pull-object": (PullObjectRequest, _plain(fleet_handlers.pull_object)),
    "/v1/fleet/confirm-message-received": (
        ConfirmMessageReceivedRequest,
        _with_store(fleet_handlers.confirm_message_received),
    ),
}


class LinkState:
    """Flower's state in a folder."""

    def __init__(self, folder: Path, sites: Sites, max_reply: int) -> None:
        self._sites = sites
        self._known: dict[str, Any] | None = None
        self.objects = MessageObjects(folder / OBJECTS)
        self._state = SqlLinkState(str(folder / STATE), _RunFederations(self.objects), self.objects)
        self._state.initialize()
        self._nodes: dict[str, int] = {}  # by fingerprint
        self._fetching: dict[int, float] = {}  # when a node fetched a part of a message last
        self._federations: dict[int, str] = {}  # by run
        self._max_reply = max_reply
        self._pushed: OrderedDict[tuple[int, str], int] = OrderedDict()  # bytes of a reply, by node and session
        rows = self._state.query(
            "SELECT run.run_id FROM run JOIN task ON task.task_id = run.primary_task_id WHERE task.finished_at IS NULL"
        )
        self._open = {int64_to_uint64(row["run_id"]) for row in rows}
        self.objects.sweep_blobs()

    def close(self) -> None:
        """Close the files."""
        self.objects.close()
        if self._state._engine is not None:
            self._state._engine.dispose()

    def nodes(self) -> dict[str, int]:
        """Return the node ids of all sites that may take part, by the fingerprints of their keys.

        Flower's state is brought up to date first: new sites are registered, revoked ones are removed.
        """
        sites = self._sites.all()
        if sites is not self._known:
            for site in sites.values():
                node = self._state.get_node_id_by_public_key(site.public_key.encode())
                if site.revoked is None and node is None:
                    node = self._state.create_node(
                        NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, site.public_key.encode(), HEARTBEAT_S
                    )
                if site.revoked is not None and node is not None:
                    self._state.delete_node(NOOP_FLWR_AID, node)
                if site.revoked is None and node is not None:
                    self._nodes[site.fingerprint] = node
            current = {site.fingerprint for site in sites.values() if site.revoked is None}
            self._nodes = {digest: node for digest, node in self._nodes.items() if digest in current}
            self._known = sites
        return self._nodes

    def online(self) -> set[int]:
        """Return the ids of the nodes that sent a sign of life lately."""
        return {info.node_id for info in self._state.get_node_info(statuses=[NodeStatus.ONLINE])}

    def read(self, path: str, body: bytes, node: int, public_key: bytes) -> Any:
        """Return the request of the Fleet API in a body.

        Raises:
            LinkRefused: the body is no such request, or it speaks for another node or of a run that isn't the node's.
        """
        kind = FLEET[path][0]
        try:
            request = kind.FromString(body)
        except Exception as error:  # protobuf's error differs between its implementations
            raise LinkRefused(f"no {kind.__name__}: {type(error).__name__}") from error
        _check_speaker(request, node, public_key)
        self._check_member(request, node)
        return request

    def answer(self, path: str, request: Any, node: int) -> bytes:
        """Do what a request asks; return the answer's body.

        Raises:
            FlowerError: Flower's handler refused it.
            ReplyTooLarge: a reply is larger than the server takes.
        """
        if isinstance(request, PullObjectRequest) and request.run_id in self._open:
            self.fetching(node)
            return self._pull_object(request)
        if isinstance(request, PushObjectRequest) and request.run_id in self._open:
            return self._push_object(request, node)
        if isinstance(request, ActivateNodeRequest):
            self._offer_again(node, 0.0)
        if isinstance(request, PushMessagesRequest):
            for message in request.messages_list:
                self._make_way(message.metadata.reply_to_message_id, message.metadata.message_id, node)
        found: bytes = FLEET[path][1](request, self._state).SerializeToString()
        return found

    def _pull_object(self, request: PullObjectRequest) -> bytes:
        """Answer as Flower's handler does, without the dozen statements by which it looks after the run each time."""
        content = self.objects.get(request.object_id)
        answer: bytes = PullObjectResponse(
            object_found=content is not None, object_available=bool(content), object_content=content or b""
        ).SerializeToString()
        return answer

    def _push_object(self, request: PushObjectRequest, node: int) -> bytes:
        """Keep an object of a reply that was announced; one that is there already, from a try before, is fine."""
        key = (node, request.session_id)
        self._pushed[key] = self._pushed.pop(key, 0) + len(request.object_content)
        if len(self._pushed) > _SESSIONS:
            self._pushed.popitem(last=False)
        if self._pushed[key] > self._max_reply:
            self._drop_unfinished("run_id", uint64_to_int64(request.run_id), node)
            raise ReplyTooLarge(f"a reply of more than {self._max_reply} bytes")
        self.objects.put(request.object_id, request.object_content)
        answer: bytes = PushObjectResponse(stored=True).SerializeToString()
        return answer

    def _make_way(self, question: str, reply: str, node: int) -> None:
        """Forget a node's earlier reply to a question if it never came wholly: it says why there is none, or it was
        killed and has another now. Flower takes one reply to a question and no second.
        """
        self._drop_unfinished("reply_to_message_id", question, node, reply)

    def _drop_unfinished(self, column: str, value: str | int, node: int, keep: str = "") -> None:
        """Forget those of a node's replies of which objects are missing."""
        rows = self._state.query(
            f"SELECT message_id FROM message_res WHERE {column} = :value AND src_node_id = :node",
            {"value": value, "node": uint64_to_int64(node)},
        )
        for row in rows:
            if row["message_id"] != keep and not self.objects.is_complete(row["message_id"]):
                self.objects.delete(row["message_id"])
                self._state.query("DELETE FROM message_res WHERE message_id = :id", {"id": row["message_id"]})

    def _check_member(self, request: Any, node: int) -> None:
        """Refuse a request about a run to which the node doesn't belong."""
        messages = request.messages_list if isinstance(request, PushMessagesRequest) else ()
        asked = {message.metadata.run_id for message in messages}
        if "run_id" in request.DESCRIPTOR.fields_by_name:
            asked.add(request.run_id)
        for run_id in asked:
            if not self.belongs(node, run_id):
                raise LinkRefused(f"run {run_id} is not one of this node's")

    def belongs(self, node: int, run_id: int) -> bool:
        """Whether a node belongs to a run."""
        return node in self.objects.members(self._federation(run_id))

    def asked(self, node: int, run_id: int, message: str) -> bool:
        """Whether that message of a run that goes on was sent to a node."""
        return self._among("message_ins", "dst_node_id", node, run_id, message)

    def replied(self, node: int, run_id: int, message: str) -> bool:
        """Whether that message of a run that goes on is a node's reply."""
        return self._among("message_res", "src_node_id", node, run_id, message)

    def _among(self, table: str, column: str, node: int, run_id: int, message: str) -> bool:
        rows = self._state.query(
            f"SELECT 1 FROM {table} WHERE message_id = :id AND run_id = :run AND {column} = :node",
            {"id": message, "run": uint64_to_int64(run_id), "node": uint64_to_int64(node)},
        )
        return bool(rows) and self.is_open(run_id) and self.belongs(node, run_id)

    def fetching(self, node: int) -> None:
        """Note that a node is fetching a message, so that it is not offered again meanwhile."""
        self._fetching[node] = time.time()

    def _federation(self, run_id: int) -> str:
        if run_id not in self._federations:
            rows = self._state.query(
                "SELECT federation_id FROM run WHERE run_id = :run", {"run": uint64_to_int64(run_id)}
            )
            if not rows:
                return ""  # nobody is a member of it
            self._federations[run_id] = rows[0]["federation_id"]
        return self._federations[run_id]

    def has_message(self, node: int) -> bool:
        """Whether a message waits for a node; one whose delivery failed on the way does so again after a while."""
        if time.time() - self._fetching.get(node, 0.0) > DELIVERY_S:
            self._offer_again(node, DELIVERY_S)
        rows = self._state.query(
            "SELECT 1 FROM message_ins "
            "WHERE dst_node_id = :node AND delivered_at = '' AND created_at + ttl > :now LIMIT 1",
            {"node": uint64_to_int64(node), "now": time.time()},
        )
        return bool(rows)

    def _offer_again(self, node: int, age_s: float) -> None:
        """Offer a node what was delivered so long ago, but never confirmed: its objects are deleted when it is."""
        before = datetime.fromtimestamp(time.time() - age_s, UTC).isoformat()
        rows = self._state.query(
            "SELECT message_id FROM message_ins "
            "WHERE dst_node_id = :node AND delivered_at <> '' AND delivered_at <= :before "
            "AND NOT EXISTS (SELECT 1 FROM message_res WHERE reply_to_message_id = message_ins.message_id)",
            {"node": uint64_to_int64(node), "before": before},
        )
        for row in rows:
            if self.objects.is_complete(row["message_id"]):
                self._state.query(
                    "UPDATE message_ins SET delivered_at = '' WHERE message_id = :id", {"id": row["message_id"]}
                )

    def open_run(self, name: str, nodes: Iterable[int]) -> int:
        """Begin a run of Flower's for a worker; earlier ones of that name end. Return its id."""
        self.end_runs(name)
        self.objects.sweep_blobs()
        self.objects.set_members(name, set(nodes))
        run_id = self._state.create_run(None, None, None, {}, name, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
        run = self._state.get_run_info(run_ids=[run_id])[0]
        task = run.primary_task_id
        assert task is not None
        if self._state.claim_task(task) is None or not self._state.activate_task(task):
            raise LinkRefused(f"run {name} could not be activated")
        # A token makes Flower end a run whose worker sends no heartbeat; our supervisor looks after workers.
        self._state.query(
            "UPDATE task SET token = NULL, active_until = NULL WHERE task_id = :task", {"task": uint64_to_int64(task)}
        )
        self._open.add(int(run_id))
        return int(run_id)

    def end_runs(self, name: str) -> None:
        """End all runs of a name; messages that are on their way are dropped."""
        rows = self._state.query(
            "SELECT run.run_id FROM run JOIN task ON task.task_id = run.primary_task_id "
            "WHERE run.federation_id = :name AND task.finished_at IS NULL",
            {"name": name},
        )
        for row in rows:
            self._open.discard(int64_to_uint64(row["run_id"]))
            self._state.stop_run(int64_to_uint64(row["run_id"]))

    def is_open(self, run_id: int) -> bool:
        """Whether a run goes on."""
        return run_id in self._open

    def send(self, run_id: int, message: ProtoMessage, tree: ObjectTree) -> bool:
        """Put a message, all of whose objects are in the store, where its node fetches it.

        Returns whether it may be sent: its node belongs to the run, and was not revoked.

        Raises:
            LinkRefused: it is of another run, or its objects are missing.
        """
        if message.metadata.run_id != run_id or message.metadata.message_id != tree.object_id:
            raise LinkRefused("a message of another run")
        if not self.objects.is_complete(tree.object_id):
            raise LinkRefused("a message whose objects are missing")
        known = message.metadata.dst_node_id in self.nodes().values()
        if known and self._state.store_message_ins(message_from_proto(message)) is not None:
            return True
        self.objects.delete(tree.object_id)
        return False

    def put(self, content: bytes) -> str:
        """Keep an object that a worker hands over; return its id.

        Raises:
            NoObjectInStoreError: no message that has it was registered.
        """
        identifier = hashlib.sha256(content).hexdigest()
        self.objects.put(identifier, content)
        return identifier

    def contents(self, tree: ObjectTree, room: int) -> tuple[list[bytes], int]:
        """Return the contents of a tree's objects as far as there is room, in bytes, and the room that is left."""
        found = []
        for identifier in object_ids(tree):
            content = self.objects.get(identifier)
            if content and len(content) <= room:
                found.append(content)
                room -= len(content)
        return found, room

    def replies(self, run_id: int, questions: Iterable[str]) -> list[Reply]:
        """Return the replies to these messages that are wholly there; they stay until `forget`."""
        found = []
        for row in self._rows("message_res", "reply_to_message_id", questions):
            if int64_to_uint64(row["run_id"]) != run_id or not self.objects.is_complete(row["message_id"]):
                continue
            for key in ("run_id", "src_node_id", "dst_node_id"):
                row[key] = int64_to_uint64(row[key])
            message: Message = dict_to_message({**row, "delivered_at": ""})
            proto = message_to_proto(message)
            found.append(Reply(proto, self.objects.get_object_tree(row["message_id"]), row["reply_to_message_id"]))
        return found

    def unreachable(self, questions: Iterable[str]) -> list[str]:
        """Return those of the messages whose node is offline or gone."""
        online = self.online()
        rows = self._rows("message_ins", "message_id", questions)
        return [row["message_id"] for row in rows if int64_to_uint64(row["dst_node_id"]) not in online]

    def forget(self, questions: Iterable[str]) -> None:
        """Delete messages and the replies to them."""
        questions = set(questions)
        for row in self._rows("message_res", "reply_to_message_id", questions):
            self.objects.delete(row["message_id"])
        for question in questions:
            self.objects.delete(question)
        self._state.delete_messages(questions)

    def _rows(self, table: str, column: str, values: Iterable[str]) -> list[dict[str, Any]]:
        rows = []
        for value in values:
            rows += self._state.query(f"SELECT * FROM {table} WHERE {column} = :value", {"value": value})
        return [{key: value for key, value in row.items() if key in _COLUMNS} for row in rows]


_COLUMNS = {
    "message_id", "group_id", "run_id", "src_node_id", "dst_node_id", "reply_to_message_id", "created_at",
    "delivered_at", "ttl", "message_type", "content", "error",
}  # fmt: skip


def _check_speaker(request: Any, node: int, public_key: bytes) -> None:
    """Refuse a request that a node makes in another's name.

    Raises:
        LinkRefused: it does.
    """
    if isinstance(request, ActivateNodeRequest | RegisterNodeFleetRequest):
        if request.public_key != public_key:
            raise LinkRefused("it activates another node's key")
        return
    claimed = request.node.node_id if hasattr(request, "node") else request.node_id
    if claimed != node:
        raise LinkRefused(f"it speaks for node {claimed}")
    if isinstance(request, PushMessagesRequest):
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise LinkRefused(f"it pushes {len(request.messages_list)} messages at once")
        if len(object_ids(request.message_object_trees[0])) > MOST_OBJECTS:
            raise LinkRefused(f"it pushes a reply of more than {MOST_OBJECTS} objects")
        if request.messages_list[0].metadata.src_node_id != node:
            raise LinkRefused(f"it pushes a reply of node {request.messages_list[0].metadata.src_node_id}")


def empty_pull() -> bytes:
    """Return the answer to a pull when there is no message."""
    body: bytes = PullMessagesResponse().SerializeToString()
    return body
