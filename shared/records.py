"""Flower's records and messages, put together in a fraction of the time that Flower takes for it.

Flower checks each key and value on its way into a record, and builds a dictionary anew, checked again, each time that a
content's array or metric records are asked for. For a small model that is more than half of a round's overhead. Here a
record takes over a dictionary whose keys and values the caller has made, and is so Flower's own class or one that
Flower can't tell from it.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord, RecordDict

Record = ArrayRecord | MetricRecord | ConfigRecord
RecordT = TypeVar("RecordT", ArrayRecord, MetricRecord, RecordDict)
Checks = tuple[Callable[[Any], None], Callable[[Any], None]]

_Synced: Any = type(RecordDict().array_records)  # Flower's view of a content's records of one kind


class _Content(RecordDict):
    """Flower's content, whose views by kind are filled in one step; what is set or deleted in a view is so here too."""

    __qualname__ = RecordDict.__qualname__  # by which Flower finds the class again on the other side of a wire

    @property
    def array_records(self) -> Any:
        """The records of arrays."""
        return _view(self, ArrayRecord)

    @property
    def metric_records(self) -> Any:
        """The records of metrics."""
        return _view(self, MetricRecord)

    @property
    def config_records(self) -> Any:
        """The records of settings."""
        return _view(self, ConfigRecord)


def content(records: dict[str, Record]) -> RecordDict:
    """Return a message's content with these records; it takes over the dictionary."""
    return _filled(_Content, records)


def arrays(values: dict[str, Array]) -> ArrayRecord:
    """Return a record of these arrays; it takes over the dictionary. Flower's constructor copies each array."""
    return _filled(ArrayRecord, values)


def metrics(values: dict[str, int | float]) -> MetricRecord:
    """Return a record of these numbers (int or float, not bool); it takes over the dictionary."""
    return _filled(MetricRecord, values)


def items(record: Any) -> dict[str, Any]:
    """Return the dictionary that a record or a content of Flower's keeps, for reading."""
    held: dict[str, Any] = record.__dict__["_data"]
    return held


def held(message: Message) -> dict[str, Record]:
    """Return the records of a message's content by name, for reading; none where it has no content."""
    content = message.__dict__["_content"]
    return {} if content is None else items(content)


def sender(message: Message) -> int:
    """Return the node that a message came from."""
    node: int = message.__dict__["_metadata"].__dict__["_src_node_id"]
    return node


def receiver(message: Message) -> int:
    """Return the node that a message goes to."""
    node: int = message.__dict__["_metadata"].__dict__["_dst_node_id"]
    return node


def kind(message: Message) -> str:
    """Return what a message asks for, by Flower's type ("train" …)."""
    told: str = message.__dict__["_metadata"].__dict__["_message_type"]
    return told


def identifier(message: Message) -> str:
    """Return a message's id."""
    told: str = message.__dict__["_metadata"].__dict__["_message_id"]
    return told


def answered(reply: Message) -> str:
    """Return the id of the message that a reply answers."""
    told: str = reply.__dict__["_metadata"].__dict__["_reply_to_message_id"]
    return told


def identify(message: Message, identifier: str) -> None:
    """Give a message its id, as the link does that takes it."""
    message.__dict__["_metadata"].__dict__["_message_id"] = identifier


def messages(records: RecordDict, kind: str, nodes: Iterable[int]) -> list[Message]:
    """Return a message of a kind ("train" …) to each node, all with the same content."""
    made: list[Message] = []
    for node in nodes:
        if not made:
            made.append(Message(records, dst_node_id=node, message_type=kind))
            first = made[0].metadata
            continue
        metadata = type(first).__new__(type(first))
        metadata.__dict__.update(first.__dict__)
        metadata.__dict__["_dst_node_id"] = node
        message = Message.__new__(Message)
        message.__dict__.update(_metadata=metadata, _content=records, _error=None)
        made.append(message)
    return made


def with_content(message: Message, records: RecordDict) -> Message:
    """Return a message with the envelope of another and this content."""
    copied = Message.__new__(Message)
    copied.__dict__.update(message.__dict__, _content=records)
    return copied


def reply(message: Message, records: RecordDict) -> Message:
    """Return the reply to a message: from its receiver to its sender, of its type, as long as it may still take."""
    asked, now = message.__dict__["_metadata"].__dict__, time.time()
    metadata = Metadata.__new__(Metadata)
    metadata.__dict__.update(
        asked,
        _message_id="",
        _src_node_id=asked["_dst_node_id"],
        _dst_node_id=asked["_src_node_id"],
        _src_task_id=asked["_dst_task_id"],
        _dst_task_id=asked["_src_task_id"],
        _reply_to_message_id=asked["_message_id"],
        _created_at=now,
        _ttl=asked["_created_at"] + asked["_ttl"] - now,
    )
    metadata.delivered_at = ""
    made = Message.__new__(Message)
    made.__dict__.update(_metadata=metadata, _content=records, _error=None)
    return made


def _checks(kind: type[Any]) -> Checks:
    """Return what an empty record of a kind checks keys and values by."""
    held = kind().__dict__
    return held["_check_key_fn"], held["_check_value_fn"]


_CHECKS: dict[type[Any], Checks] = {kind: _checks(kind) for kind in (ArrayRecord, MetricRecord, _Content)}


def _filled(kind: type[RecordT], held: dict[str, Any]) -> RecordT:
    record = kind.__new__(kind)
    inside = record.__dict__
    inside["_check_key_fn"], inside["_check_value_fn"] = _CHECKS[kind]
    inside["_data"] = held
    return record


def _view(records: RecordDict, kind: type[Record]) -> Any:
    view = _Synced.__new__(_Synced)
    view.__dict__.update(
        _check_key_fn=records.__dict__["_check_key_fn"],
        _check_value_fn=view.check_value,
        _data={key: record for key, record in records.__dict__["_data"].items() if isinstance(record, kind)},
        recorddict=records,
        allowed_type=kind,
    )
    return view
