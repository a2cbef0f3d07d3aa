"""The link's state: a message is offered until it is confirmed or answered, and to nobody outside its run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity

from astrofed.server.service.link_state import LinkRefused, LinkState, ReplyTooLarge
from astrofed.server.service.sites import Sites
from astrofed.shared import records
from astrofed.shared.keys import fingerprint, new_node_key
from astrofed.shared.membership import make_request

pytestmark = pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")  # Flower's migrations


class Link:
    """A link with two sites, and one run of the first alone."""

    def __init__(self, folder: Path) -> None:
        self.sites = Sites(folder)
        self.keys = {name: new_node_key() for name in ("tess", "k2")}
        for name, key in self.keys.items():
            self.sites.enroll(make_request(name, "test@example.org", [], key), ("default",))
        self.state = LinkState(folder, self.sites, 1024)
        nodes = self.state.nodes()
        self.nodes = {name: nodes[fingerprint(key.public_key())] for name, key in self.keys.items()}
        for name in self.keys:
            self.ask(name, "activate-node", ActivateNodeRequest(public_key=self.public(name), heartbeat_interval=30))
        self.run = self.state.open_run("run", [self.nodes["tess"]])
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self.run, SUPERLINK_NODE_ID, 1

    def public(self, name: str) -> bytes:
        return self.sites.get(name).public_key.encode()

    def ask(self, name: str, path: str, request: Any) -> bytes:
        node, path = self.nodes[name], f"/v1/fleet/{path}"
        read = self.state.read(path, request.SerializeToString(), node, self.public(name))
        return self.state.answer(path, read, node)

    def send(self, name: str, text: str) -> tuple[Message, bool]:
        content = RecordDict({"config": ConfigRecord({"plan": text})})
        message = Message(content, self.nodes[name], "query.enrol")
        message.metadata.__dict__["_message_id"] = message.object_id
        tree = get_object_tree(message)
        self.state.objects.preregister(self.run, tree)
        for each in get_all_nested_objects(message).values():
            self.state.put(each.deflate())
        return message, self.state.send(self.run, message_to_proto(records.with_content(message, RecordDict())), tree)

    def pull(self, name: str) -> list[Message]:
        answer = self.ask(name, "pull-messages", PullMessagesRequest(node=Node(node_id=self.nodes[name])))
        return [message_from_proto(each) for each in PullMessagesResponse.FromString(answer).messages_list]

    def reply(self, name: str, reply: Message) -> Message:
        """Announce a reply; its objects are still to come."""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        envelope = records.with_content(reply, RecordDict()) if reply.has_content() else reply
        push = PushMessagesRequest(
            node=Node(node_id=self.nodes[name]),
            messages_list=[message_to_proto(envelope)],
            message_object_trees=[get_object_tree(reply)],
        )
        self.ask(name, "push-messages", push)
        return reply

    def activate(self, name: str) -> None:
        self.state._state.deactivate_node(self.nodes[name])
        self.ask(name, "activate-node", ActivateNodeRequest(public_key=self.public(name), heartbeat_interval=30))


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    made = Link(tmp_path)
    yield made
    made.state.close()


def test_a_message_is_offered_again_until_it_is_confirmed(link: Link) -> None:
    question, sent = link.send("tess", "plan")
    assert sent and link.state.has_message(link.nodes["tess"])
    assert [each.metadata.message_id for each in link.pull("tess")] == [question.metadata.message_id]
    assert link.pull("tess") == []
    link.activate("tess")
    assert [each.metadata.message_id for each in link.pull("tess")] == [question.metadata.message_id]
    done = ConfirmMessageReceivedRequest(
        node=Node(node_id=link.nodes["tess"]), run_id=link.run, message_object_id=question.metadata.message_id
    )
    link.ask("tess", "confirm-message-received", done)
    link.activate("tess")
    assert link.pull("tess") == []


def test_a_message_that_was_answered_is_not_offered_again_and_a_second_reply_counts_for_nothing(link: Link) -> None:
    question, _ = link.send("tess", "plan")
    link.pull("tess")
    for reason in ("first", "second"):
        reply = link.reply("tess", Message(Error(code=2, reason=reason), reply_to=question))
        if reason == "first":
            link.state.put(reply.deflate())
    (found,) = link.state.replies(link.run, [question.metadata.message_id])
    assert message_from_proto(found.message).error.reason == "first"
    link.activate("tess")
    assert link.pull("tess") == []
    link.state.forget([question.metadata.message_id])
    assert link.state.replies(link.run, [question.metadata.message_id]) == []


def test_a_reply_that_is_too_large_is_dropped_and_another_may_say_so(link: Link) -> None:
    question, _ = link.send("tess", "plan")
    link.pull("tess")
    huge = link.reply("tess", Message(RecordDict({"x": ConfigRecord({"y": "z" * 2000})}), reply_to=question))
    with pytest.raises(ReplyTooLarge, match="more than 1024 bytes"):
        for name, each in get_all_nested_objects(huge).items():
            push = PushObjectRequest(
                node=Node(node_id=link.nodes["tess"]), run_id=link.run, object_id=name, object_content=each.deflate()
            )
            link.ask("tess", "push-object", push)
    told = link.reply("tess", Message(Error(code=2, reason="too large"), reply_to=question))
    link.state.put(told.deflate())
    (found,) = link.state.replies(link.run, [question.metadata.message_id])
    assert message_from_proto(found.message).error.reason == "too large"


def test_a_reply_that_never_came_wholly_makes_way_for_another(link: Link) -> None:
    question, _ = link.send("tess", "plan")
    link.pull("tess")
    begun = link.reply("tess", Message(RecordDict({"x": ConfigRecord({"y": "begun"})}), reply_to=question))
    link.reply("tess", begun)  # sent again, it is still the same
    told = link.reply("tess", Message(Error(code=2, reason="lost on the way"), reply_to=question))
    link.state.put(told.deflate())
    late = link.reply("tess", Message(Error(code=2, reason="late"), reply_to=question))
    (found,) = link.state.replies(link.run, [question.metadata.message_id])
    assert message_from_proto(found.message).error.reason == "lost on the way"
    assert begun.object_id not in link.state.objects and late.object_id not in link.state.objects


def test_who_is_not_of_the_run_is_neither_sent_to_nor_heard(link: Link) -> None:
    _, sent = link.send("k2", "plan")
    assert not sent
    with pytest.raises(LinkRefused, match="not one of this node's"):
        link.ask("k2", "confirm-message-received", ConfirmMessageReceivedRequest(
            node=Node(node_id=link.nodes["k2"]), run_id=link.run, message_object_id="ab" * 32
        ))  # fmt: skip


def test_a_revoked_site_is_not_sent_to_and_a_run_that_ended_is_over(link: Link) -> None:
    link.sites.revoke("tess")
    _, sent = link.send("tess", "plan")
    assert not sent
    link.state.end_runs("run")
    assert not link.state.is_open(link.run)


def test_what_the_link_knows_outlasts_its_process(link: Link, tmp_path: Path) -> None:
    question, _ = link.send("tess", "plan")
    link.state.close()
    link.state = LinkState(tmp_path, link.sites, 1024)
    assert set(link.state.nodes().values()) == set(link.nodes.values())
    assert link.state.is_open(link.run)
    assert [each.metadata.message_id for each in link.pull("tess")] == [question.metadata.message_id]
