"""Flower's records and messages, put together in a fraction of the time that Flower takes for it.

Flower checks each key and value on its way into a record, and builds a dictionary anew, checked again, each time that a
content's array or metric records are asked for. For a small model that is more than half of a round's overhead. Here a
record takes over a dictionary whose keys and values the caller has made, and is so Flower's own class or one that
Flower can't tell from it.
"""

import time
from collections.abc import Mapping
from typing import Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

Record = ArrayRecord | MetricRecord | ConfigRecord
RecordT = TypeVar("RecordT", ArrayRecord, MetricRecord, RecordDict)

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


def content(records: Mapping[str, Record]) -> RecordDict:
    """Return a message's content with these records."""
    return _filled(_Content, records)


def arrays(values: Mapping[str, Array]) -> ArrayRecord:
    """Return a record of these arrays; Flower's constructor copies each."""
    return _filled(ArrayRecord, values)


def metrics(values: Mapping[str, int | float]) -> MetricRecord:
    """Return a record of these numbers (int or float, not bool)."""
    return _filled(MetricRecord, values)


def with_content(message: Message, records: RecordDict) -> Message:
    """Return a message with the envelope of another and this content."""
    copied = Message.__new__(Message)
    copied.__dict__.update(message.__dict__, _content=records)
    return copied


def reply(message: Message, records: RecordDict) -> Message:
    """Return the reply to a message: from its receiver to its sender, of its type, as long as it may still take."""
    asked, now = message.metadata.__dict__, time.time()
    metadata = type(message.metadata).__new__(type(message.metadata))
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


def _filled(kind: type[RecordT], items: Mapping[str, Any]) -> RecordT:
    record = kind()
    record.__dict__["_data"].update(items)
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
