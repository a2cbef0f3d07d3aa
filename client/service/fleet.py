"""Flower's Fleet API (flwr 1.42, protobuf over HTTPS), as a site calls it: TLS 1.3 against the coordinator's CA, and
SuperNode authentication (each request carries the time, signed by the node's P-384 key).

Flower's own SuperNode sleeps three seconds between messages, loses replies that it can't send, and installs and runs
whatever code a run brings along. Nothing of that is here: code (a FAB) is never fetched.
"""

import re
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Proto

from astrofed.client.service.blob_transfer import BlobTransfer
from astrofed.client.service.messages import Envelope, blob_of, check_hash, envelope, is_enough, tree_of, wanted
from astrofed.client.service.refusals import BadAnswer, NotAdmitted, RunOver, TooLarge, Unreachable, in_words, refusal
from astrofed.client.service.sealed import Sealed
from astrofed.shared.blobs import Blobs
from astrofed.shared.keys import NodeKey, public_pem
from astrofed.shared.waiting import HELD_HEADER, WAIT_HEADER

HEARTBEAT_S = 30  # what Flower's SuperNode promises; the server takes a node for gone after twice that
TIMEOUT_S = 30.0
LARGEST_ANSWER = 64 * 2**20  # bytes; Flower's pieces of arrays have 5 MiB
_ID = re.compile(r"[0-9a-f]{64}")
_CONNECTIONS = 4  # objects that are moved at once
AnswerT = TypeVar("AnswerT", bound=Proto)
ResultT = TypeVar("ResultT")


class Fleet:
    """A site's connection to its coordinator. Thread-safe; connects when it must, and again when it has to."""

    def __init__(self, address: str, ca_certificate: str, key: NodeKey, largest_message: int, blobs: Blobs) -> None:
        """`address`: host:port; `ca_certificate`: PEM; `largest_message`: bytes of one question's objects and blob."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=ca_certificate)
        self._http = httpx.Client(verify=context, timeout=TIMEOUT_S, follow_redirects=False)
        self._pool: ThreadPoolExecutor | None = None
        self._base, self._key = f"https://{address}/v1/fleet", key
        self._public = public_pem(key.public_key()).encode()
        self._largest = largest_message
        self._headers = {
            "content-type": PROTOBUF_MEDIA_TYPE,
            "accept": PROTOBUF_MEDIA_TYPE,
            "accept-encoding": "identity",
            FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self._public).decode(),
            **dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata()),
        }
        self._blobs = BlobTransfer(address, context, self._signed, blobs)
        self.address = address
        self.node = 0  # the node's id, once it is active

    def connect(self, known: int | None) -> int:
        """Say that this node is there; return its id, which stays the same as long as its key does.

        `known`: its id from an earlier time. A server that still takes the node for connected (for a minute after a
        crash) activates it for nobody, but hears its heartbeat.
        """
        if known is not None:
            self.node = known
            try:
                self.heartbeat()
                return known
            except NotAdmitted:  # not under this id: the server may have forgotten everything
                self.node = 0
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_S)
        self.node = self._call("activate-node", request, ActivateNodeResponse).node_id
        return self.node

    def deactivate(self) -> None:
        """Say that this node goes; the server need not wait for it."""
        self._call("deactivate-node", DeactivateNodeRequest(node_id=self.node), DeactivateNodeResponse, timeout=3.0)

    def heartbeat(self) -> None:
        """Say that this node is still there."""
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
        if not self._call("send-node-heartbeat", request, SendNodeHeartbeatResponse, timeout=5.0).success:
            raise NotAdmitted(f"{self.address} does not know this node any more")

    def pull(self, wait_s: float) -> tuple[Sealed | None, bool]:
        """Ask for the next question; return its claim, if there is one, and whether the server held the request.

        From now on the server hands this question to nobody any more: the claim is to be kept until it is answered.
        """
        request, headers = PullMessagesRequest(node=self._node), {WAIT_HEADER: f"{wait_s:g}"} if wait_s else {}
        answer, response = self._exchange("pull-messages", request, PullMessagesResponse, headers, TIMEOUT_S + wait_s)
        held = HELD_HEADER in response.headers
        if not answer.messages_list:
            return None, held
        if len(answer.messages_list) != 1 or len(answer.message_object_trees) != 1:
            raise BadAnswer(f"{self.address} sent {len(answer.messages_list)} messages at once; one was asked for")
        outside, tree = answer.messages_list[0], answer.message_object_trees[0]
        if not _ID.fullmatch(outside.metadata.message_id):
            raise BadAnswer(f"{self.address} sent a message whose id is no SHA-256")
        return Sealed(outside.SerializeToString(), tree.SerializeToString()), held

    def fetch(self, claim: Sealed) -> Sealed:
        """Fetch the objects of a question that was claimed.

        Raises:
            TooLarge, Unreadable: it can't be taken as it is.
        """
        outside, tree = envelope(claim), tree_of(claim)
        objects: dict[str, bytes] = {}
        for turn in wanted(tree):
            size = sum(map(len, objects.values()))
            for identifier, content in self._fetch(outside, [name for name in turn if name not in objects]):
                check_hash(identifier, content)
                size += len(content)
                if size > self._largest:
                    raise TooLarge(f"the message has more than the {self._largest:,} bytes that this site takes")
                objects[identifier] = content
            if is_enough(objects):
                break
        whole = Sealed(claim.envelope, claim.tree, objects)
        if (blob := blob_of(whole)) is not None:
            if whole.size + blob.size > self._largest:
                raise TooLarge(f"the message has more than the {self._largest:,} bytes that this site takes")
            self._blobs.fetch(outside.run, outside.id, blob)
        return whole

    def push(self, reply: Sealed) -> bool:
        """Send a reply; return whether the server took anything of it. Sent twice, it counts once.

        Not taken means: the server has it already, or does not want it any more.
        """
        outside, tree = envelope(reply), ObjectTree.FromString(reply.tree)
        request = PushMessagesRequest(
            node=self._node,
            messages_list=[MessageProto.FromString(reply.envelope)],
            message_object_trees=[tree],
            clientapp_runtime_list=[0.0],
        )
        answer = self._call("push-messages", request, PushMessagesResponse)
        missing = set(answer.objects_to_push)
        order = [node.object_id for node in iterate_object_tree(tree)]
        names = list(dict.fromkeys(name for name in order if name in missing and name in reply.objects))
        for _ in self._each(
            lambda name: self._push_object(outside, answer.session_id, name, reply.objects[name]), names
        ):
            pass
        blob = blob_of(reply)
        if blob is None or blob.id not in missing:
            return bool(names)
        self._blobs.send(outside.run, request.message_object_trees[0].object_id, blob)
        return True

    def confirm(self, run: int, question: str) -> None:
        """Say that the question with that id is done with; the server forgets its objects."""
        request = ConfirmMessageReceivedRequest(node=self._node, run_id=run, message_object_id=question)
        self._call("confirm-message-received", request, ConfirmMessageReceivedResponse)

    def close(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._http.close()

    @property
    def _node(self) -> Node:
        return Node(node_id=self.node)

    def _fetch(self, outside: Envelope, names: list[str]) -> Iterable[tuple[str, bytes]]:
        return zip(names, self._each(lambda name: self._pull_object(outside, name), names), strict=True)

    def _each(self, work: Callable[[str], ResultT], items: list[str]) -> Iterable[ResultT]:
        """Work on items in their order, several at once where there are many."""
        if len(items) < 3:
            return map(work, items)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="fleet")
        return self._pool.map(work, items)

    def _pull_object(self, outside: Envelope, name: str) -> bytes:
        request = PullObjectRequest(node=self._node, run_id=outside.run, object_id=name)
        deadline, pause = time.monotonic() + TIMEOUT_S, 0.02
        while True:
            answer = self._call("pull-object", request, PullObjectResponse)
            if not answer.object_found:
                raise RunOver(f"object {name[:12]}… of the message is not there any more")
            if answer.object_available:
                return answer.object_content
            if time.monotonic() > deadline:
                raise Unreachable(f"{self.address} has not got all of a message after {TIMEOUT_S:g} s")
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _push_object(self, outside: Envelope, session: str, name: str, content: bytes) -> None:
        request = PushObjectRequest(
            node=self._node, run_id=outside.run, object_id=name, object_content=content, session_id=session
        )
        if not self._call("push-object", request, PushObjectResponse).stored:
            raise Unreachable(f"{self.address} did not store object {name[:12]}…; the reply has to be sent anew")

    def _call(self, path: str, request: Proto, kind: type[AnswerT], *, timeout: float = TIMEOUT_S) -> AnswerT:
        return self._exchange(path, request, kind, {}, timeout)[0]

    def _exchange(
        self, path: str, request: Proto, kind: type[AnswerT], headers: dict[str, str], timeout: float
    ) -> tuple[AnswerT, httpx.Response]:
        """Send a request and return the answer, with the response that it came in.

        Raises:
            Unreachable, NotAdmitted, RunOver, TooLarge, BadAnswer: what it says.
        """
        try:
            response, body = self._send(path, request.SerializeToString(), {**self._signed(), **headers}, timeout)
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
            raise Unreachable(f"{self.address} can't be reached: {in_words(error)}") from error
        if response.status_code != 200:
            known = FlowerError.from_json(body.decode(errors="replace"))
            if known is not None and known.code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
                raise RunOver("the run is over")
            raise refusal(self.address, path, response.status_code, response.headers)
        try:
            answer = kind()
            answer.ParseFromString(body)
        except (DecodeError, RecursionError) as error:
            raise BadAnswer(f"{self.address} answered {path} with bytes that are no {kind.__name__}") from error
        return answer, response

    def _signed(self) -> dict[str, str]:
        """Return the headers of a request that is made now."""
        moment = datetime.now(UTC).isoformat()
        signature = self._key.sign(moment.encode(), ec.ECDSA(hashes.SHA256()))
        signed = {TIMESTAMP_HEADER: moment, FLEET_HTTP_SIGNATURE_HEADER: b64encode(signature).decode()}
        return {**self._headers, **signed}

    def _send(self, path: str, data: bytes, headers: dict[str, str], timeout: float) -> tuple[httpx.Response, bytes]:
        with self._http.stream(
            "POST", f"{self._base}/{path}", content=data, headers=headers, timeout=timeout
        ) as response:
            body = bytearray()
            for piece in response.iter_raw():
                body += piece
                if len(body) > LARGEST_ANSWER:
                    raise BadAnswer(f"{self.address} answered {path} with more than {LARGEST_ANSWER:,} bytes")
        return response, bytes(body)
