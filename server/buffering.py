"""Asynchronous rounds: the model moves on after a number of replies, and slow sites go on with the model they have.

Nguyen et al. (2022), "Federated learning with buffered asynchronous aggregation" (FedBuff), AISTATS, algorithm 1: the
server takes a step when K updates are in its buffer; an update that was begun tau steps ago counts 1 / sqrt(1 + tau)
(section 5.1). A late reply is screened against the model that its site was sent, then its change, made smaller, is put
onto the model of today, so that every strategy and robust rule aggregates late replies as it does timely ones.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from astrofed.server.screening import Rejected, screen_training
from astrofed.shared import records
from astrofed.shared.arrays import from_numpy, to_numpy

Arrays = dict[str, NDArray[Any]]
POLL_S = 0.02


@dataclass(frozen=True)
class _Work:
    """What a site was asked."""

    node: int
    round: int
    message: Message
    until: float  # monotonic time after which it counts as lost


@dataclass(frozen=True)
class Gathered:
    """The replies of one buffer, ready for a strategy."""

    accepted: list[Message]  # models moved onto today's, in the order of the nodes
    rejected: list[Rejected]
    replies: list[Message]  # all that came, as they came
    staleness: dict[int, int]  # by node accepted, how many rounds ago it was asked


class Buffer:
    """Which sites are at work on which model; lives as long as the process, so a resumed run asks every site anew."""

    def __init__(self, size: int, max_staleness: int, timeout_s: float) -> None:
        self._size, self._max_staleness, self._timeout_s = size, max_staleness, timeout_s
        self._waiting: dict[str, _Work] = {}
        self._arrived: list[tuple[_Work, Message]] = []
        self._models: dict[int, Arrays] = {}

    def idle(self, nodes: Sequence[int]) -> list[int]:
        """Return which of the nodes have nothing to do."""
        busy = {work.node for work in self._waiting.values()} | {work.node for work, _ in self._arrived}
        return [node for node in nodes if node not in busy]

    def at_work(self) -> dict[int, int]:
        """Return the round that each node at work was asked in."""
        return {work.node: work.round for work in self._waiting.values()}

    def ask(self, grid: Grid, number: int, model: Arrays, messages: Sequence[Message]) -> None:
        """Send a round's messages, which carry `model`."""
        if messages:
            self._models[number] = model
            until = time.monotonic() + self._timeout_s
            identifiers = grid.push_messages(messages)
            for identifier, message in zip(identifiers, messages, strict=True):
                self._waiting[identifier] = _Work(records.receiver(message), number, message, until)

    def gather(
        self, grid: Grid, number: int, model: Arrays, counts: Mapping[int, int], max_norm: float | None
    ) -> Gathered:
        """Wait until the buffer is full, or all have replied or are lost; return what is in it.

        Args:
            grid: where the replies come from.
            number: the round that they will be part of.
            model: today's global model.
            counts: by node, the number of training examples that its site enrolled with, in the nodes' order.
            max_norm: see `screen_training`.
        """
        lost = self._wait(grid)
        taken, self._arrived = self._arrived[: self._size], self._arrived[self._size :]
        accepted: dict[int, Message] = {}
        rejected = [Rejected(work.node, f"no reply within {self._timeout_s:g} s") for work in lost]
        staleness: dict[int, int] = {}
        for asked in sorted({work.round for work, _ in taken}):
            group = [(work, reply) for work, reply in taken if work.round == asked]
            late = number - asked
            if late > self._max_staleness:
                reason = f"stale: asked in round {asked}, {late} rounds ago; at most {self._max_staleness} are used"
                rejected += [Rejected(work.node, reason) for work, _ in group]
                continue
            base = self._models[asked]
            good, bad = screen_training(
                [reply for _, reply in group],
                base,
                {work.node: counts[work.node] for work, _ in group},
                questions={work.node: work.message.metadata.message_id for work, _ in group},
                max_norm=max_norm,
            )
            rejected += bad
            for reply in good:
                node = records.sender(reply)
                accepted[node] = reply if late == 0 else _moved(reply, base, model, late)
                staleness[node] = late
        self._forget_models()
        ordered = [node for node in counts if node in accepted]
        return Gathered(
            [accepted[node] for node in ordered],
            rejected,
            [reply for _, reply in taken],
            {node: staleness[node] for node in ordered},
        )

    def _wait(self, grid: Grid) -> list[_Work]:
        lost = []
        while True:
            replies = list(grid.pull_messages(list(self._waiting))) if self._waiting else []
            for reply in replies:
                work = self._waiting.pop(reply.metadata.reply_to_message_id, None)
                if work is not None:
                    self._arrived.append((work, reply))
            now = time.monotonic()
            for identifier, work in list(self._waiting.items()):
                if now > work.until:
                    lost.append(self._waiting.pop(identifier))
            if len(self._arrived) >= self._size or not self._waiting:
                return lost
            if not replies:
                time.sleep(POLL_S)

    def _forget_models(self) -> None:
        needed = {work.round for work in self._waiting.values()} | {work.round for work, _ in self._arrived}
        self._models = {number: model for number, model in self._models.items() if number in needed}


def _moved(reply: Message, base: Arrays, model: Arrays, late: int) -> Message:
    """Return a late reply as a change of today's model."""
    weight = (1 + late) ** -0.5
    arrays = to_numpy(reply.content.array_records["arrays"])
    moved = {}
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            change = np.subtract(array, base[name], dtype=np.float64)
            moved[name] = (model[name] + weight * change).astype(array.dtype)
        else:
            moved[name] = array
    metrics = reply.content.metric_records["metrics"]
    return records.with_content(reply, records.content({"arrays": from_numpy(moved), "metrics": metrics}))
