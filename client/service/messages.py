"""Between sealed messages and Flower's own: opening a question, sealing a reply. With `fleet`, all that knows Flower's
insides on a site.

Flower cuts a message into objects (itself, its records, its arrays), each named by its hash, and both sides move them
one by one. A packed message (`shared.packing`) has one object that matters, and it alone is fetched, with the blob that
it names.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_body,
    get_object_head_values_from_object_content,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from astrofed.client.service.sealed import Sealed
from astrofed.shared import packing
from astrofed.shared.blobs import Blob, Blobs
from astrofed.shared.errors import AstrofedError
from astrofed.shared.files import CannotWrite
from astrofed.shared.packing import Form, blob_id

APP_FAILED = 2  # Flower's code for "the client app raised an exception"
MOST_OBJECTS = 200_000
_Malformed = (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError, AssertionError)


class Unreadable(AstrofedError):
    """A message whose parts don't fit together, or are not what they are named."""


@dataclass(frozen=True)
class Envelope:
    """What stands on a message's outside."""

    id: str
    run: int
    sender: int
    receiver: int
    kind: str
    reply_to: str
    group: str
    created: float  # seconds since 1970
    ttl: float  # seconds

    @property
    def expires(self) -> float:
        """Until when a reply is wanted, in seconds since 1970 by the coordinator's clock."""
        return self.created + self.ttl


def envelope(sealed: Sealed) -> Envelope:
    """Return what stands on the outside.

    Raises:
        Unreadable: it can't be read.
    """
    try:
        data = MessageProto.FromString(sealed.envelope).metadata
    except Exception as error:
        raise Unreadable("a message's envelope can't be read") from error
    return Envelope(
        id=data.message_id,
        run=data.run_id,
        sender=data.src_node_id,
        receiver=data.dst_node_id,
        kind=data.message_type,
        reply_to=data.reply_to_message_id,
        group=data.group_id,
        created=data.created_at,
        ttl=data.ttl,
    )


def tree_of(sealed: Sealed) -> ObjectTree:
    """Return the tree of a message's objects.

    Raises:
        Unreadable: it can't be read, or has far too many objects.
    """
    try:
        tree = ObjectTree()
        tree.ParseFromString(sealed.tree)
        count = sum(1 for _ in iterate_object_tree(tree))
    except Exception as error:
        raise Unreadable("a message's list of objects can't be read") from error
    if count > MOST_OBJECTS:
        raise Unreadable(f"a message is in {count} pieces; at most {MOST_OBJECTS} are read")
    return tree


def wanted(tree: ObjectTree) -> Iterator[list[str]]:
    """Give the ids of a question's objects to fetch, in turns; `is_enough` says after each whether more are needed.

    The message itself is never fetched: all that it says stands on its envelope.
    """
    records = [child for content in tree.children for child in content.children]
    if len(records) == 1 and not any(child.children for child in records[0].children):
        yield [records[0].object_id]  # a lone record, or one with a blob: packed, as a rule
    everything = [node.object_id for content in tree.children for node in iterate_object_tree(content)]
    yield list(dict.fromkeys(everything))


def is_enough(objects: Mapping[str, bytes]) -> bool:
    """Whether these objects are a whole packed content."""
    return len(objects) == 1 and _lone(objects) is not None


def blob_of(sealed: Sealed) -> Blob | None:
    """Return the blob of a packed message whose record is there; None if it has none.

    Raises:
        Unreadable: it names another than its list of objects.
    """
    tree = tree_of(sealed)
    if (identifier := blob_id(tree)) is None:
        return None
    try:
        blob = packing.blob_of(ConfigRecord.inflate(sealed.objects[tree.children[0].children[0].object_id]))
    except (packing.MalformedPack, *_Malformed) as error:
        raise Unreadable(f"a message's blob can't be told: {error}") from error
    if blob is None or blob.id != identifier:
        raise Unreadable("a message names another blob than its list of objects")
    return blob


def check_hash(identifier: str, content: bytes) -> None:
    """Check that an object is the one that was asked for.

    Raises:
        Unreadable: it is another.
    """
    if hashlib.sha256(content).hexdigest() != identifier:
        raise Unreadable(f"object {identifier[:12]}… came with other bytes than its name says")


def content_of(sealed: Sealed) -> RecordDict:
    """Return a message's content as it travelled, packed or not.

    Raises:
        Unreadable: it can't be read.
    """
    try:
        lone = _lone(sealed.objects)
        if lone is not None and len(sealed.objects) == 1:
            return RecordDict({packing.NAME: lone})
        (root,) = tree_of(sealed).children
        found = inflate_object_from_contents(root.object_id, dict(sealed.objects))
    except _Malformed as error:
        raise Unreadable(f"a message's content can't be read: {type(error).__name__}") from error
    if not isinstance(found, RecordDict):
        raise Unreadable("a message's content is no set of records")
    return found


def settings(sealed: Sealed) -> ConfigRecord:
    """Return a question's record "config" without unpacking any array.

    Raises:
        Unreadable: there is none, or it can't be read.
    """
    try:
        if len(sealed.objects) == 1 and (lone := _lone(sealed.objects)) is not None:
            return packing.settings_of(RecordDict({packing.NAME: lone}), "config")
        (root,) = tree_of(sealed).children
        names = json.loads(get_object_body(sealed.objects[root.object_id], RecordDict))
        if packing.NAME in names:
            packed = ConfigRecord.inflate(sealed.objects[names[packing.NAME]])
            return packing.settings_of(RecordDict({packing.NAME: packed}), "config")
        return ConfigRecord.inflate(sealed.objects[names["config"]])
    except (packing.MalformedPack, *_Malformed) as error:
        raise Unreadable(f"a message carries no settings that can be read: {error}") from error
    except Exception as error:
        if type(error).__module__.startswith("google.protobuf"):
            raise Unreadable("a message carries no settings that can be read") from error
        raise


def open_question(sealed: Sealed, node: int, blobs: Blobs) -> tuple[Message, Context, Form]:
    """Return a question as the client app wants it, and the form in which its reply may be.

    Raises:
        Unreadable, MalformedPack, WrongBlob: it can't be read.
    """
    message = message_from_proto(MessageProto.FromString(sealed.envelope))
    content = content_of(sealed)
    form = packing.form_of(content)
    message.content = content if form is Form.PLAIN else packing.unpack(content, blobs)
    context = Context(run_id=message.metadata.run_id, node_id=node, node_config={}, state=RecordDict(), run_config={})
    return message, context, form


def seal_reply(reply: Message, form: Form = Form.PLAIN, blobs: Blobs | None = None) -> Sealed:
    """Return a reply ready to be kept and sent; its id is the hash of what it holds, and stays the same from now on."""
    blob = None
    if form is not Form.PLAIN and reply.has_content():
        reply.content = _packed(reply.content, blobs if form is Form.WITH_BLOBS else None)
        blob = packing.blob_of(reply.content.config_records[packing.NAME])
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = {name: item.deflate() for name, item in get_all_nested_objects(reply).items()}
        tree = get_object_tree(reply)
    if blob is not None:
        tree.children[0].children[0].children.add(object_id=blob.id)
    proto = message_to_proto(remove_content_from_message(reply))
    return Sealed(proto.SerializeToString(), tree.SerializeToString(), objects)


def _packed(content: RecordDict, blobs: Blobs | None) -> RecordDict:
    """Return a reply's content packed; where the disk has no room for its arrays, they travel in pieces from memory."""
    try:
        return packing.pack(content, blobs, flush=True)
    except CannotWrite:
        return packing.pack(content)


def error_reply(question: Sealed, reason: str) -> Sealed:
    """Return the reply that says why a question was not answered; the reason goes to the coordinator."""
    message = message_from_proto(MessageProto.FromString(question.envelope))
    return seal_reply(Message(Error(code=APP_FAILED, reason=reason), reply_to=message))


def error_instead(reply: Sealed, reason: str) -> Sealed | None:
    """Return an error reply to the question that a reply answers; None if that is an error reply itself."""
    proto = MessageProto.FromString(reply.envelope)
    if proto.HasField("error"):
        return None
    proto.ClearField("content")
    proto.error.code, proto.error.reason = APP_FAILED, reason
    return seal_reply(message_from_proto(proto))


def still_wanted(outside: Envelope, now: float | None = None) -> bool:
    """Whether the coordinator still waits for a reply to that question, or for that reply."""
    return (time.time() if now is None else now) < outside.expires


def _lone(objects: Mapping[str, bytes]) -> ConfigRecord | None:
    """Return the record of a packed content that is one object, or None if it is something else."""
    if len(objects) != 1:
        return None
    (content,) = objects.values()
    try:
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind != ConfigRecord.__qualname__ or children:
            return None
        record = ConfigRecord.inflate(content)
    except Exception:  # noqa: BLE001 - whatever can't be read is no packed content
        return None
    return record if "header" in record and ("arrays" in record or "blob" in record) else None
