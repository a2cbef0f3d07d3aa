"""Our strategy: screened replies go through a robust rule, with mixing before it, instead of a plain mean."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from astrofed.server.aggregation.base import Combination, Coordinatewise, Floats, Mixing, Rule, TooFewReplies
from astrofed.server.aggregation.pipeline import Pipeline
from astrofed.shared import registry
from astrofed.shared.arrays import from_numpy, to_numpy
from astrofed.shared.plan import Named, PlanError, check_options

DEFAULT_PRE, DEFAULT_RULE = ("nnm",), "krum"
COUNT = "num-examples"
_log = logging.getLogger(__name__)


def build_pipeline(rule: str | None, pre: Sequence[str], f: int | None, options: Mapping[str, Any]) -> Pipeline:
    """Build the aggregation that a plan's [strategy] section names; `options` are the rule's.

    Without a rule it is Krum on mixed updates (pre = ["nnm"]). Where participants' data differ, as they do, mixing
    first keeps a rule from taking honest participants for liars; of the rules here, Krum and the median after it hold
    best against the known attacks, and Krum also says whom it left out.

    Raises:
        PlanError: a name stands in the wrong place, an option is wrong, or f is missing.
        UnknownPlugin: a name that no rule has.
    """
    if rule is None:
        rule, pre = DEFAULT_RULE, pre or DEFAULT_PRE
    last = _build(rule, options)
    if not isinstance(last, Combination | Coordinatewise):
        raise PlanError(
            f"strategy.rule: {rule!r} mixes updates and leaves several; write pre = [{rule!r}] and name a rule after it"
        )
    stages = []
    for name in pre:
        stage = _build(name, {})
        if not isinstance(stage, Mixing):
            raise PlanError(f"strategy.pre: {name!r} is a rule, which ends the aggregation; write rule = {name!r}")
        stages.append(stage)
    label = " + ".join(registry.find("rules", name).name for name in (*pre, rule))
    if f is None and last.minimum_replies(1) is not None:
        raise PlanError(f"strategy.f: required by {label}; say how many lying participants it should withstand")
    return Pipeline(label, tuple(stages), last, f or 0)


def _build(name: str, options: Mapping[str, Any]) -> Rule:
    cls: type[Rule] = registry.get("rules", name)
    return cls(check_options(cls.Options, Named(name=name, options=dict(options)), "strategy"))


class RobustStrategy(Strategy):
    """Aggregation that withstands up to f lying participants, by a rule and its pre-aggregators (see `build_pipeline`).

    Replies must have gone through `screen_training`. After each round `weights` says each node's share of the new model
    (None for rules on single coordinates), `left_out` which replies have no share and why, and `skipped` why a round
    left the model as it was, if it did.
    """

    def __init__(
        self,
        rule: str | None = None,
        pre: Sequence[str] = (),
        f: int | None = None,
        weights: Literal["equal", "examples"] = "equal",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the strategy.

        Args:
            rule: a registered rule; `options` are its own keys.
            pre: registered pre-aggregators, first to last.
            f: how many lying participants to withstand; only rules that withstand none may go without.
            weights: shares before the rule, equal or by numbers of examples (which screening bounds by what each site
                enrolled with; a site that lied there is believed).

        Raises:
            PlanError: see `build_pipeline`; or the rule can't weigh by examples.
        """
        self.pipeline = build_pipeline(rule, pre, f, options or {})
        stages, last = self.pipeline.pre, self.pipeline.rule
        if weights == "examples" and (stages or not (isinstance(last, Combination) and last.weighs_examples)):
            raise PlanError(
                f"strategy.weights: {self.pipeline.name} counts all participants alike; remove weights = 'examples', "
                "or use rule = 'multi-krum' or 'mean' without pre"
            )
        self._by_examples = weights == "examples"
        self._reference: dict[str, NDArray[Any]] = {}
        self.weights: dict[int, float] | None = None
        self.left_out: dict[int, str] = {}
        self.skipped: str | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a train message for every node; remember the model that updates are taken from."""
        self._reference = to_numpy(arrays)
        return _messages(MessageType.TRAIN, server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the new model and the mean metrics of those in it; (None, None) where the rule needs more replies."""
        replies = list(replies)
        nodes = [reply.metadata.src_node_id for reply in replies]
        self.weights, self.left_out, self.skipped = None, {}, None
        models = [to_numpy(reply.content.array_records["arrays"]) for reply in replies]
        metrics = [_scalars(reply.content.metric_records["metrics"]) for reply in replies]
        try:
            outcome = self.pipeline.aggregate(self._reference, models, self._shares(metrics))
        except TooFewReplies as error:
            self.skipped = str(error)
            return None, None
        if outcome.weights is not None:
            self.weights = dict(zip(nodes, outcome.weights.tolist(), strict=True))
        self.left_out = {nodes[index]: reason for index, reason in outcome.left_out.items()}
        return from_numpy(outcome.arrays), _mean(metrics, outcome.weights)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return an evaluate message for every node."""
        return _messages(MessageType.EVALUATE, server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the mean of the metrics that all replies have, all counting alike."""
        metrics = [_scalars(reply.content.metric_records["metrics"]) for reply in replies if reply.has_content()]
        return _mean(metrics, None) if metrics else None

    def summary(self) -> None:
        """Log the rule and what it needs."""
        need = self.pipeline.minimum_replies()
        _log.info("%s, f = %d, at least %s replies a round", self.pipeline.name, self.pipeline.f, need)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return nothing: no round depends on the rounds before but through the model."""
        return {}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take back what `state_dict` returned: nothing."""

    def _shares(self, metrics: Sequence[Mapping[str, float]]) -> Floats | None:
        if not self._by_examples or not metrics:
            return None
        counts = np.array([entry[COUNT] for entry in metrics], dtype=np.float64)
        shares: Floats = counts / counts.sum()
        return shares


def _messages(kind: str, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> list[Message]:
    config["server-round"] = server_round
    record = RecordDict({"arrays": arrays, "config": config})
    return [Message(content=record, message_type=kind, dst_node_id=node) for node in grid.get_node_ids()]


def _scalars(record: MetricRecord) -> dict[str, float]:
    return {key: float(value) for key, value in record.items() if isinstance(value, int | float)}


def _mean(metrics: Sequence[Mapping[str, float]], weights: Floats | None) -> MetricRecord:
    """Return the weighted mean of the metrics that all have, without the counts."""
    shares = np.full(len(metrics), 1 / len(metrics)) if weights is None else weights
    keys = [key for key in metrics[0] if key != COUNT and all(key in entry for entry in metrics)]
    pairs = [(share, entry) for share, entry in zip(shares.tolist(), metrics, strict=True) if share]
    return MetricRecord({key: sum(share * entry[key] for share, entry in pairs) for key in keys})
