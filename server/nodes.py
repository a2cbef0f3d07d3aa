"""Which node is which participant, and views of a grid that show only some of the nodes."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from astrofed.shared.errors import AstrofedError

POLL_S = 0.02


class NodesMissing(AstrofedError):
    """Fewer nodes are connected than the plan has participants."""


def wait_for_nodes(grid: Grid, count: int, timeout_s: float) -> list[int]:
    """Return the ids of the connected nodes once there are `count` of them.

    Raises:
        NodesMissing: there are fewer when the time is over.
    """
    deadline = time.monotonic() + timeout_s
    while len(nodes := list(grid.get_node_ids())) < count:
        if time.monotonic() > deadline:
            raise NodesMissing(
                f"{len(nodes)} nodes are connected after {timeout_s:g} s; the plan has {count} participants"
            )
        time.sleep(POLL_S)
    return nodes


def ask(grid: Grid, nodes: Iterable[int], kind: str, config: dict[str, Any], timeout_s: float) -> list[Message]:
    """Send one message of a kind ("query.enrol" …) to each node and return the replies."""
    content = RecordDict({"config": ConfigRecord(config)})
    messages = [Message(content=content, dst_node_id=node, message_type=kind) for node in nodes]
    return list(grid.send_and_receive(messages, timeout=timeout_s))


class PassingGrid(Grid):
    """Passes everything on to another grid: the base of grids that change one thing."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def set_run(self, run: Any) -> None:
        """Pass a run on to the grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """The grid's run."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message (deprecated by Flower in favour of the `Message` constructor)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the grid's nodes."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass messages on to the grid."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Fetch replies from the grid."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Pass messages on to the grid and return the replies."""
        return self._grid.send_and_receive(messages, timeout=timeout)


class GridView(PassingGrid):
    """A grid that shows only the given nodes, in the given order."""

    def __init__(self, grid: Grid, nodes: Sequence[int]) -> None:
        super().__init__(grid)
        self._nodes = list(nodes)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes of this view."""
        return list(self._nodes)
