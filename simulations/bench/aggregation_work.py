"""The work of `astrofed bench aggregation`: rules with what comes before them, and replies as a server holds them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from astrofed.server.aggregation.pipeline import Pipeline
from astrofed.server.strategies.robust import DEFAULT_PRE, DEFAULT_RULE, RobustStrategy, build_pipeline
from astrofed.shared.arrays import from_numpy, to_numpy

NAME = "w"
Kind = Literal["plain", "offset 1000", "spread 1e-4"]
KINDS: tuple[Kind, ...] = get_args(Kind)
GOLDEN = 2.399963  # radians between neighbouring seeds
PRE = ("nnm", "bucketing", "clip", "arc")


@dataclass(frozen=True)
class Case:
    """A rule and what comes before it."""

    rule: str
    pre: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The stages in their order."""
        return " + ".join((*self.pre, self.rule))

    def f(self, n: int) -> int:
        """Return how many liars it is to withstand: a fifth, as far as the rule can."""
        if self.rule == "mean":
            return 0
        return min(n // 5, (n - 3) // 4) if self.rule == "bulyan" else n // 5

    def reads(self, n: int) -> float:
        """Return how often each value is read: once for distances if they are needed, once for the result."""
        if self.pre or self.rule == "geometric-median":
            return 2.0
        kept = {"multi-krum": n - self.f(n), "bulyan": n - 2 * self.f(n)}.get(self.rule, 0)
        return 1.0 + kept / n

    def options(self, d: int) -> dict[str, Any]:
        """Return the plan's keys; clipping shortens about half of the updates of `Replies` in one of its kinds."""
        return {"clip_norm": float(np.sqrt(d))} if "clip" in self.pre else {}

    def pipeline(self, n: int, d: int) -> Pipeline:
        """Return the aggregation of n replies of d values."""
        return build_pipeline(self.rule, self.pre, self.f(n), self.options(d))

    def strategy(self, replies: "Replies") -> RobustStrategy:
        """Return the strategy that a plan names, which has sent the model out and waits for these replies."""
        options = self.options(replies.d)
        strategy = RobustStrategy(self.rule, self.pre, self.f(replies.n), options=options)
        strategy.configure_train(1, from_numpy(replies.model), ConfigRecord(), cast(Grid, _Nobody()))
        return strategy


DEFAULT = Case(DEFAULT_RULE, DEFAULT_PRE)
ALONE = tuple(
    Case(rule) for rule in ("mean", "median", "trimmed-mean", "krum", "multi-krum", "bulyan", "geometric-median")
)
MIXED = tuple(Case("trimmed-mean", (pre,)) for pre in PRE)
CASES = (*ALONE, DEFAULT, *MIXED)


class _Nobody:
    """A grid without nodes: what is sent out goes nowhere."""

    def get_node_ids(self) -> list[int]:
        return []


@dataclass
class Replies:
    """A model of d float32 values in one array, and n replies to it, as bytes off a wire.

    The updates lie about a plane through the model, as a sunflower's seeds: each client has a direction and a length of
    its own, from 0.5 to 1.5 times `spread` a value, and noise of 0.3 times. So no two distances are alike.
    """

    n: int
    d: int
    kind: Kind = "plain"
    seed: int = 0
    model: dict[str, NDArray[Any]] = field(init=False)
    records: list[ArrayRecord] = field(init=False)

    def __post_init__(self) -> None:
        """Draw the model and the replies."""
        rng = np.random.default_rng(self.seed)
        offset = np.float32(1000 if self.kind == "offset 1000" else 0)
        weights, across, along = (rng.standard_normal(self.d, dtype=np.float32) for _ in range(3))
        weights += offset
        self.model, self.records = {NAME: weights}, []
        for client in range(self.n):
            angle, length = GOLDEN * client, 0.5 + client / max(1, self.n - 1)
            update = rng.standard_normal(self.d, dtype=np.float32)
            update *= np.float32(0.3 * self.spread)
            update += np.float32(length * self.spread * np.cos(angle)) * across
            update += np.float32(length * self.spread * np.sin(angle)) * along
            update += weights
            self.records.append(from_numpy({NAME: update}))

    @property
    def spread(self) -> float:
        """The updates' length a value, in the middle."""
        return 1e-4 if self.kind == "spread 1e-4" else 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of all replies."""
        return 4 * self.n * self.d

    def arrays(self) -> list[dict[str, NDArray[Any]]]:
        """Return views of the replies."""
        return [to_numpy(record) for record in self.records]

    def messages(self) -> Sequence[Message]:
        """Return the replies as messages; records are new, as some strategies empty them, their bytes are the same."""
        found = []
        for client, record in enumerate(self.records):
            order = Message(content=RecordDict(), dst_node_id=client + 1, message_type="train")
            arrays, metrics = ArrayRecord(dict(record)), MetricRecord({"num-examples": 10, "loss": 1.0})
            found.append(Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=order))
        return found
