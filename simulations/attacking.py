"""A grid in which some participants lie: it forges their replies to train messages, on whatever engine runs below."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from flwr.app import Message, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from astrofed.server.nodes import PassingGrid
from astrofed.shared import records, registry
from astrofed.shared.arrays import from_numpy, to_numpy
from astrofed.shared.plan import Plan, check_options
from astrofed.shared.seeds import derive_seed
from astrofed.simulations.attack import Attack, Scene

Arrays = dict[str, NDArray[Any]]


class AttackGrid(PassingGrid):
    """Passes everything on to a grid; after the honest work of a round, attackers' replies are replaced by forged ones.

    Which node is which participant it learns from the replies to enrolment that pass through. Data-poisoning attacks
    are the site's own doing and leave replies as they are, and so does an error: who could not train can't forge.
    Replies fetched by `pull_messages` are forged as well; attackers then see the honest replies of the same fetch.

    Raises:
        PlanError: an option of an attack is wrong.
        UnknownPlugin: a name that no attack has.
    """

    def __init__(self, grid: Grid, plan: Plan) -> None:
        super().__init__(grid)
        self._plan = plan
        self._names: dict[int, str] = {}
        self._attacks: dict[str, Attack] = {}
        self._pushed: dict[str, Message] = {}
        for participant in plan.participants:
            if participant.attack is not None:
                cls: type[Attack] = registry.get("attacks", participant.attack.name)
                options = check_options(cls.Options, participant.attack, f"participants.{participant.name}.attack")
                self._attacks[participant.name] = cls(options)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Pass messages on to the grid and return the replies, those of attackers forged."""
        sent = list(messages)
        replies = list(self._grid.send_and_receive(sent, timeout=timeout))
        kinds = {message.metadata.message_type for message in sent}
        if "query.enrol" in kinds:
            self._learn(replies)
        return self._forged(sent, replies) if "train" in kinds and self._attacks else replies

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass messages on to the grid and remember what was asked."""
        sent = list(messages)
        identifiers = list(self._grid.push_messages(sent))
        self._pushed.update(zip(identifiers, sent, strict=True))
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Fetch replies from the grid, those of attackers forged."""
        replies = list(self._grid.pull_messages(message_ids))
        sent = [self._pushed.pop(reply.metadata.reply_to_message_id) for reply in replies]
        train = any(message.metadata.message_type == "train" for message in sent)
        return self._forged(sent, replies) if train and self._attacks else replies

    def _learn(self, replies: Sequence[Message]) -> None:
        for reply in replies:
            if reply.has_content() and "site" in reply.content.config_records:
                self._names[reply.metadata.src_node_id] = str(reply.content.config_records["site"]["name"])

    def _forged(self, sent: Sequence[Message], replies: Sequence[Message]) -> list[Message]:
        orders = {message.metadata.dst_node_id: message for message in sent}
        at = {self._names[r.metadata.src_node_id]: r for r in replies if r.metadata.src_node_id in self._names}
        worked = [p.name for p in self._plan.participants if p.name in at and at[p.name].has_content()]
        models = {name: to_numpy(at[name].content.array_records["arrays"]) for name in worked}
        liars = [name for name in worked if name in self._attacks]
        honest = tuple(models[name] for name in worked if name not in self._attacks)
        honest = honest or tuple(models[name] for name in liars)  # they know no other work than their own
        forged: dict[int, Message | None] = {}
        for name in liars:
            attack, reply = self._attacks[name], at[name]
            if not attack.poisons_data:
                order = orders[reply.metadata.src_node_id]
                scene = self._scene(name, order, reply, models[name], honest, len(liars))
                forged[reply.metadata.src_node_id] = _forge(attack, scene, reply)
        sent_back = [forged.get(reply.metadata.src_node_id, reply) for reply in replies]
        return [reply for reply in sent_back if reply is not None]

    def _scene(
        self, name: str, order: Message, reply: Message, own: Arrays, honest: tuple[Arrays, ...], attackers: int
    ) -> Scene:
        number = int(str(order.content.config_records["config"]["server-round"]))
        metrics = {k: v for k, v in reply.content.metric_records["metrics"].items() if isinstance(v, int | float)}
        return Scene(
            round=number,
            reference=to_numpy(order.content.array_records["arrays"]),
            own=own,
            metrics=metrics,
            honest=honest,
            attackers=attackers,
            rng=np.random.default_rng(derive_seed(self._plan.seed, "attack", number, name)),
        )


def _forge(attack: Attack, scene: Scene, reply: Message) -> Message | None:
    with np.errstate(over="ignore", invalid="ignore"):  # a forgery may overflow: screening has to deal with it
        forgery = attack.forge(scene)
    if forgery is None:
        return None
    told = MetricRecord({**forgery.metrics})
    return records.with_content(reply, records.content({"arrays": from_numpy(forgery.arrays), "metrics": told}))
