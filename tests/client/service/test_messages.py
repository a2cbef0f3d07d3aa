"""A reply that the server can't take is replaced by one that says so, to the same question."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from astrofed.client.service.diary import Diary
from astrofed.client.service.messages import Form, envelope, error_instead, seal_reply
from astrofed.client.service.node import Node
from astrofed.client.service.spool import Spool


def test_an_error_stands_in_for_a_reply_and_for_no_error() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1
    question = Message(RecordDict(), dst_node_id=5, message_type="train")
    question.metadata.__dict__["_message_id"] = "ab" * 32
    content = RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(1000))})})
    reply = seal_reply(Message(content, reply_to=question), Form.PACKED)
    instead = error_instead(reply, "k2: too large")
    assert instead is not None and instead.size < reply.size / 10
    before, after = envelope(reply), envelope(instead)
    assert after.id != before.id
    same = ("run", "sender", "receiver", "kind", "reply_to", "expires")
    assert [getattr(after, key) for key in same] == [getattr(before, key) for key in same]
    assert error_instead(instead, "again") is None


def test_a_node_keeps_the_error_in_place_of_the_reply(tmp_path: Path) -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1
    question = Message(RecordDict(), dst_node_id=5, message_type="train")
    question.metadata.__dict__["_message_id"] = "ab" * 32
    reply = seal_reply(Message(RecordDict(), reply_to=question), Form.PACKED)
    spool, said = Spool(tmp_path), Diary(None, lambda _: None)
    home: Any = SimpleNamespace(site_name="k2")
    nobody: Any = None
    node = Node(home, nobody, spool, nobody, nobody, said)
    spool.keep_reply("ab" * 32, reply)
    node._tell_instead("ab" * 32, reply, "too large")
    ((_, kept),) = spool.replies()
    assert error_instead(kept, "again") is None  # it is an error by now
    node._tell_instead("ab" * 32, kept, "too large")
    assert spool.waiting == 0
