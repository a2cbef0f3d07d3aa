"""The embedded engine: a Flower `Grid` in this process that hands each message straight to the client app.

No Ray, no sockets, no sleeps, and no serialisation beyond what Flower's records are. Clients run one after the other,
or on a pool of threads (tensor operations release the interpreter lock). Replies come back in the order of the
messages, whatever the number of workers, so that sums over replies are the same to the bit.
"""

import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import count
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from astrofed.shared import records

SERVER_NODE_ID = 1
CLIENT_APP_RAISED = 2  # Flower's code for "the client app raised an exception"


class EmbeddedGrid(Grid):
    """Runs `client_app` for a number of nodes in this process; node i has partition-id i, as in Flower's simulation."""

    def __init__(
        self, client_app: ClientApp, participants: int, *, workers: int = 1, run_id: int | None = None
    ) -> None:
        self._client_app = client_app
        workers = min(workers, participants)
        # The threads live as long as the grid: a client app keeps a model for each.
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="client") if workers > 1 else None
        self._run_id = run_id if run_id is not None else random.SystemRandom().getrandbits(62)
        self._sequence = count(1)
        self._replies: dict[str, Message] = {}
        self._contexts = {
            SERVER_NODE_ID + 1 + index: Context(
                run_id=self._run_id,
                node_id=SERVER_NODE_ID + 1 + index,
                node_config={"partition-id": index, "num-partitions": participants},
                state=RecordDict(),
                run_config={},
            )
            for index in range(participants)
        }
        # Flower's Message constructor reads the sender's identity from here.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self._run_id, SERVER_NODE_ID, 1

    def set_run(self, run: Any) -> None:
        """Take over the id of a Flower run."""
        self._run_id = run.run_id

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

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes, in the order of their partitions."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run the messages' clients at once and keep their replies for `pull_messages`."""
        messages = list(messages)
        for message, reply in zip(messages, self._run(messages), strict=True):
            self._replies[message.metadata.message_id] = reply
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to those messages, once each."""
        return [self._replies.pop(identifier) for identifier in message_ids if identifier in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Run the messages' clients and return their replies, in the messages' order."""
        return self._run(list(messages))

    def _run(self, messages: list[Message]) -> list[Message]:
        for message in messages:
            records.identify(message, f"{self._run_id:x}-{next(self._sequence)}")
        if self._pool is None:
            return [self._answer(message) for message in messages]
        answers = [self._pool.submit(self._answer, message) for message in messages]
        try:
            return [answer.result() for answer in answers]
        except BaseException:  # an interrupt: no client starts any more, and none is left behind at work
            for answer in answers:
                answer.cancel()
            wait(answers)
            raise

    def _answer(self, message: Message) -> Message:
        reply = self._call(message)
        records.identify(reply, f"{records.identifier(message)}-reply")
        return reply

    def _call(self, message: Message) -> Message:
        node_id = records.receiver(message)
        context = self._contexts.get(node_id)
        if context is None:
            return _error_reply(message, f"there is no node {node_id} in this run")
        # Each client gets its own outer record: replacing entries in it must not reach the other clients.
        private = records.with_content(message, message.content.copy())
        try:
            return self._client_app(private, context)
        except Exception as error:  # noqa: BLE001 - as in every Flower runtime, a client's failure becomes an error reply
            return _error_reply(message, f"{type(error).__name__}: {error}")


def _error_reply(message: Message, reason: str) -> Message:
    return Message(Error(code=CLIENT_APP_RAISED, reason=reason), reply_to=message)
