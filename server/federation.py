"""The rounds of a federation: ask, screen, aggregate, evaluate, record. Any Flower strategy, any engine.

Flower's own loop (`Strategy.start`) has no checkpoints, no start round and no screening, and one bad reply ends it.
This one calls the same hooks of the strategy (`configure_train`, `aggregate_train`, `configure_evaluate`,
`aggregate_evaluate`) around them.
"""

import gc
import random
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from astrofed.server.buffering import Buffer
from astrofed.server.checkpoint import Checkpoint, drop_old_checkpoints, load_checkpoint, save_checkpoint
from astrofed.server.enrolment import Roster, Statistics, statistics_to_json
from astrofed.server.membership import Door
from astrofed.server.nodes import GridView
from astrofed.server.privacy.participation import for_operator
from astrofed.server.record import RunRecord
from astrofed.server.screening import Rejected, screen_evaluation, screen_training
from astrofed.server.strategies.state import restore_state, strategy_state
from astrofed.shared import records
from astrofed.shared.array_forms import parts, size
from astrofed.shared.arrays import from_numpy, to_numpy
from astrofed.shared.errors import AstrofedError, UserMistake
from astrofed.shared.plan import Plan
from astrofed.shared.record import Quarantine, Round, Spent, Start
from astrofed.shared.seeds import derive_seed

Arrays = dict[str, NDArray[Any]]
T = TypeVar("T")
MAX_SKIPPED = 3
FLUSH_S = 1.0  # at most so much work is lost in a power cut; a killed process loses none


class StrategyFailed(UserMistake):
    """A strategy raised an error, or gave back something that is not a model."""


class NobodyAccepted(UserMistake):
    """Round after round, no reply could be used."""


class Interrupted(AstrofedError):
    """The run was asked to stop after a round."""

    exit_code = 130


class Observer(Protocol):
    """Who wants to know how a run goes: a progress display, a notebook."""

    def started(self, plan: Plan, start: Start) -> None:
        """The participants have enrolled."""

    def round_done(self, entry: Round) -> None:
        """A round is in the record."""

    def should_stop(self) -> bool:
        """Whether the run should end after the round in progress."""


@dataclass
class Federation:
    """One run's state between rounds."""

    grid: Grid
    plan: Plan
    record: RunRecord
    roster: Roster
    statistics: Statistics
    strategy: Strategy
    model: Arrays
    observer: Observer
    _spent: dict[str, Spent] = field(default_factory=dict)
    _flushed: float = -FLUSH_S

    def run(self) -> None:
        """Run all rounds that the record lacks; afterwards the record holds rounds 0 to `plan.rounds`.

        Raises:
            StrategyFailed, NobodyAccepted, Interrupted, CannotWrite: the record stays as it is, ready to be resumed.
        """
        python, numpy = random.getstate(), np.random.get_state()
        gc.freeze()  # what imports made stays; looking through it for garbage takes a quarter of a second each time
        try:
            self._run()
        finally:
            gc.unfreeze()
            random.setstate(python)  # the hooks of strategies were given seeds of their own
            np.random.set_state(numpy)

    def _run(self) -> None:
        if self.record.rounds:
            self._restore()
        else:
            self._complete(0, lambda: self._evaluate(0))
        for number in range(len(self.record.rounds), self.plan.rounds + 1):
            if self.observer.should_stop():
                raise Interrupted(
                    f"stopped after round {number - 1} of {self.plan.rounds}; --resume goes on from there"
                )
            self._complete(number, lambda number=number: self._admitting(number))  # type: ignore[misc]
            self._give_up_if_nobody_is_accepted()

    def _restore(self) -> None:
        last = self.record.rounds[-1]
        checkpoint = load_checkpoint(self.record.folder, last.checkpoint, last.checkpoint_sha256)
        self.model = {name: checkpoint.model[name] for name in self.model}  # in the network's order: sums depend on it
        restore_state(self.strategy, checkpoint.strategy_arrays, checkpoint.strategy_scalars)
        self._spent = {spent.participant: spent for spent in last.privacy}

    def _complete(self, number: int, work: Callable[[], dict[str, Any]]) -> None:
        """Do a round's work, then write its checkpoint, then its line: only the line makes it complete."""
        began = time.monotonic()
        entry = work()
        seconds: float | None = time.monotonic() - began
        if number and self._discreet:
            entry = for_operator(self.record.folder, number, seconds or 0.0, entry)
            seconds = None
        arrays, scalars = strategy_state(self.strategy)
        flush = number == self.plan.rounds or time.monotonic() - self._flushed > FLUSH_S
        checkpoint = Checkpoint(self.model, arrays, scalars)
        name, digest = save_checkpoint(self.record.folder, number, checkpoint, flush=flush)
        line = Round(
            previous=self.record.previous,
            round=number,
            privacy=tuple(self._spent.values()),
            central_privacy=getattr(self.strategy, "spent", None) if self._discreet else None,
            seconds=None if seconds is None else round(time.monotonic() - began, 4),
            checkpoint=name,
            checkpoint_sha256=digest,
            **entry,
        )
        self.record.append(line, flush=flush)
        if flush:
            self._flushed = time.monotonic()
        drop_old_checkpoints(self.record.folder)
        self.observer.round_done(line)

    def _admitting(self, number: int) -> dict[str, Any]:
        """Do a round, with those who came since the one before where membership is open."""
        if self._door is None:
            return self._round(number)
        self.roster, joined, refused = self._door.admit(self.roster)
        if joined:
            self._tell_enrolled()
        entry = self._round(number)
        return entry | {"joined": joined, "quarantined": (*refused, *entry["quarantined"])}

    def _round(self, number: int) -> dict[str, Any]:
        if self._buffer is not None:
            return self._buffered_round(number, self._buffer)
        plan = self.plan
        messages = self._ask_to_train(number, self.roster.with_role("train"))
        replies = self._send(messages)
        self._note_privacy(replies)
        questions = {records.receiver(message): records.identifier(message) for message in messages}
        expected = {node: count for node, count in self.roster.num_examples.items() if node in questions}
        accepted, rejected = screen_training(
            replies, self.model, expected, questions=questions, max_norm=plan.strategy.max_norm
        )
        entry = self._step(number, accepted, rejected)
        return self._evaluated(number, entry | {"bytes": _size(messages) + _size(replies)})

    def _buffered_round(self, number: int, buffer: Buffer) -> dict[str, Any]:
        """Ask the sites that are idle, and step on when the buffer is full."""
        trainers = self.roster.with_role("train")
        idle = buffer.idle(trainers)
        messages = self._ask_to_train(number, idle) if idle else []
        buffer.ask(self.grid, number, self.model, messages)
        counts = {node: self.roster.num_examples[node] for node in trainers}
        found = buffer.gather(self.grid, number, self.model, counts, self.plan.strategy.max_norm)
        self._note_privacy(found.replies)
        entry = self._step(number, found.accepted, found.rejected)
        late = [f"{self.roster.name(node)}: asked {ago} rounds ago" for node, ago in found.staleness.items() if ago]
        entry["notes"] = (*entry["notes"], *late)
        return self._evaluated(number, entry | {"bytes": _size(messages) + _size(found.replies)})

    def _ask_to_train(self, number: int, nodes: Sequence[int]) -> list[Message]:
        arrays, config = from_numpy(self.model), self._config(number)
        if self.plan.shares_noise:
            config["noise-turn"] = secrets.token_hex(16)  # a round that is repeated is another turn
        with self._guard("configure_train", number):
            view = GridView(self.grid, nodes)
            return list(self.strategy.configure_train(number, arrays, config, view))

    def _evaluated(self, number: int, entry: dict[str, Any]) -> dict[str, Any]:
        if number % self.plan.evaluate_every == 0 or number == self.plan.rounds:
            return _merge(entry, self._evaluate(number))
        return entry

    def _step(self, number: int, accepted: list[Message], rejected: list[Rejected]) -> dict[str, Any]:
        """Aggregate what is usable and make it the model; return what the record says of it."""
        plan, skipped = self.plan, None
        metrics: MetricRecord | None = None
        if len(accepted) < plan.needed_replies and not self._discreet:
            shared = ": noise that all share is gone only from the mean of all" if plan.shares_noise else ""
            skipped = f"{len(accepted)} usable replies; the quorum is {plan.needed_replies}{shared}"
        else:
            with self._guard("aggregate_train", number):
                result, metrics = self.strategy.aggregate_train(number, accepted)
            skipped = self._take_over(result)
        weights, left_out = self._shares(accepted) if skipped is None else ({}, [])
        out = {item.node_id for item in left_out}
        kept = [node for node in map(records.sender, accepted) if node not in out]
        return {
            "skipped": skipped,
            "notes": self._notes(),
            "accepted": tuple(map(self.roster.name, kept)),
            "weights": weights,
            "quarantined": self.roster.quarantine([*rejected, *left_out]),
            "train_metrics": _scalars(metrics),
        }

    def _take_over(self, result: ArrayRecord | None) -> str | None:
        """Make a strategy's result the model; return why not, if it is none."""
        if result is None:
            return getattr(self.strategy, "skipped", None) or "the strategy gave no model"
        arrays = to_numpy(result)
        if arrays.keys() != self.model.keys() or any(arrays[k].shape != v.shape for k, v in self.model.items()):
            raise StrategyFailed(
                f"strategy {self.plan.strategy.name!r} gave back arrays that are not the model's; "
                "aggregate_train must keep names and shapes"
            )
        if not all(np.isfinite(part).all() for array in arrays.values() for part in parts(array)):
            return "the strategy's result is not finite"
        self.model = {name: arrays[name].astype(old.dtype, copy=False) for name, old in self.model.items()}
        return None

    def _shares(self, accepted: Sequence[Message]) -> tuple[dict[str, float], list[Rejected]]:
        """Return the accepted updates' shares in the new model, and whom the rule left out, where it says so."""
        shares: Mapping[int, float] | None = getattr(self.strategy, "weights", None)
        left_out: Mapping[int, str] | None = getattr(self.strategy, "left_out", None)
        rejected = [Rejected(node, reason) for node, reason in left_out.items()] if isinstance(left_out, dict) else []
        if not isinstance(shares, dict):
            return {}, rejected
        nodes = [records.sender(message) for message in accepted]
        return {self.roster.name(n): float(shares[n]) for n in nodes if shares.get(n)}, rejected

    def _notes(self) -> tuple[str, ...]:
        """Return what the strategy found out of the ordinary, where it says so."""
        notes = getattr(self.strategy, "notes", None)
        return tuple(notes) if isinstance(notes, list) and all(isinstance(note, str) for note in notes) else ()

    def _evaluate(self, number: int) -> dict[str, Any]:
        """Evaluate the model at every participant; the first time also the baselines."""
        nodes = list(self.roster.nodes.values())
        if self._buffer is not None and number < self.plan.rounds:  # who is at work can't evaluate now
            nodes = self._buffer.idle(nodes)
        config = self._config(number)
        config["with-baselines"] = number == 0
        arrays = from_numpy(self.model)
        with self._guard("configure_evaluate", number):
            view = GridView(self.grid, nodes)
            messages = list(self.strategy.configure_evaluate(number, arrays, config, view))
        replies = self._send(messages)
        asked = {message.metadata.dst_node_id for message in messages}
        by_node, rejected = screen_evaluation(replies, [node for node in nodes if node in asked])
        self._tell_strategy(number, messages, by_node)
        trained, unseen = self.roster.with_role("train"), self.roster.with_role("evaluate")
        mean = _mean([by_node[node] for node in trained if node in by_node])
        return {
            "loss": mean.get("loss"),
            "metrics": mean,
            "unseen": _mean([by_node[node] for node in unseen if node in by_node]),
            "sites": {self.roster.name(node): metrics for node, metrics in by_node.items()},
            "quarantined": self.roster.quarantine(rejected),
            "bytes": _size(messages) + _size(replies),
        }

    def _tell_strategy(self, number: int, asked: Sequence[Message], by_node: Mapping[int, dict[str, float]]) -> None:
        """Give the strategy what it expects of an evaluation: the headline metric of each node, in Flower's records."""
        counts = {self.roster.nodes[site.participant]: site.num_eval_examples for site in self.roster.enrolled}
        told = []
        for message in asked:
            node = message.metadata.dst_node_id
            if node in by_node:
                record = records.metrics({"loss": by_node[node]["loss"], "num-examples": counts[node]})
                told.append(records.reply(message, records.content({"metrics": record})))
        with self._guard("aggregate_evaluate", number):
            self.strategy.aggregate_evaluate(number, told)

    def _send(self, messages: Sequence[Message]) -> list[Message]:
        """Send messages; return the replies in the order of the participants, whatever order they came in."""
        replies = list(self.grid.send_and_receive(messages, timeout=self.plan.strategy.timeout_s)) if messages else []
        order = {node: index for index, node in enumerate(self.roster.nodes.values())}
        return sorted(replies, key=lambda reply: order.get(records.sender(reply), len(order)))

    def _config(self, number: int) -> ConfigRecord:
        return ConfigRecord({"plan": self._plan_text, "statistics": self._statistics_text, "server-round": number})

    def __post_init__(self) -> None:
        self._tell_enrolled()
        self._door = Door(self.grid, self.plan) if self.plan.strategy.membership == "open" else None
        opened = getattr(self.strategy, "opened", None)
        if callable(opened):
            opened(self.record.folder, self.record.rounds[-1].central_privacy if self.record.rounds else None)
        section = self.plan.strategy
        self._buffer = (
            Buffer(section.buffer, section.max_staleness, section.timeout_s) if section.buffer is not None else None
        )
        self._plan_text = self.plan.to_json()
        self._statistics_text = statistics_to_json(self.statistics)

    def _tell_enrolled(self) -> None:
        enrolled = getattr(self.strategy, "enrolled", None)
        if callable(enrolled):
            enrolled(self.roster.nodes)

    @property
    def _discreet(self) -> bool:
        """Whether the record must not tell who took part in a round (see `privacy/participation.py`)."""
        return getattr(self.strategy, "discreet", False) is True

    def _note_privacy(self, replies: Iterable[Message]) -> None:
        """Remember what sites say they have spent, also of replies that are not used: it is spent all the same."""
        if self.plan.privacy is None:
            return
        data = {participant.name: participant.data for participant in self.plan.participants}
        for reply in replies:
            records = [] if reply.has_error() else list(reply.content.metric_records.values())
            spent = {key: value for record in records for key, value in record.items() if key in ("epsilon", "delta")}
            name = self.roster.name(reply.metadata.src_node_id)
            if all(isinstance(spent.get(key), float | int) for key in ("epsilon", "delta")) and name in data:
                self._spent[name] = Spent(
                    participant=name,
                    dataset=data[name],
                    unit=self.plan.privacy.unit,
                    **spent,  # type: ignore[arg-type]
                )

    def _give_up_if_nobody_is_accepted(self) -> None:
        """Stop when the model can't move: the last rounds were all skipped, or all there were."""
        done = self.record.rounds[1:]
        last = done[-MAX_SKIPPED:]
        if any(entry.skipped is None for entry in last) or (len(last) < MAX_SKIPPED and len(done) < self.plan.rounds):
            return
        reasons = sorted({f"{item.participant}: {item.reason}" for entry in last for item in entry.quarantined})
        raise NobodyAccepted(
            f"rounds {last[0].round} to {last[-1].round} changed nothing ({last[-1].skipped}). "
            + ("; ".join(reasons) or "no participant replied")
        )

    @contextmanager
    def _guard(self, hook: str, number: int) -> Iterator[None]:
        """Name a hook's errors, and seed the global generators for it: Flower's strategies draw from them."""
        seed = derive_seed(self.plan.seed, "strategy", hook, number)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        except AstrofedError:
            raise
        except Exception as error:
            raise StrategyFailed(
                f"strategy {self.plan.strategy.name!r} failed in {hook}, round {number}: "
                f"{type(error).__name__}: {error}"
            ) from error


def _merge(entry: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
    both: tuple[Quarantine, ...] = (*entry["quarantined"], *evaluation["quarantined"])
    return {**entry, **evaluation, "quarantined": both, "bytes": entry["bytes"] + evaluation["bytes"]}


def _mean(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over those that have it, all counting alike."""
    keys = {key: None for entry in metrics for key in entry if key != "num-examples"}
    return {key: float(np.mean([entry[key] for entry in metrics if key in entry])) for key in keys}


def _scalars(record: MetricRecord | None) -> dict[str, float]:
    found = {} if record is None else dict(record)
    own = {"num-examples", "epsilon", "delta"}  # these have places of their own, and no meaningful mean
    return {k: float(v) for k, v in found.items() if isinstance(v, int | float) and np.isfinite(v) and k not in own}


def _size(messages: Iterable[Message]) -> int:
    """Return the bytes of all arrays; a content that many messages share is read once."""
    sizes: dict[int, int] = {}
    total = 0
    for message in messages:
        held = records.held(message)
        found = sizes.get(id(held))
        if found is None:
            arrays = [record for record in held.values() if isinstance(record, ArrayRecord)]
            found = sum([size(array) for record in arrays for array in records.items(record).values()])
            sizes[id(held)] = found
        total += found
    return total
