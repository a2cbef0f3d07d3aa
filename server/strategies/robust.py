"""Our strategy: screened replies go through a robust rule, with mixing before it, instead of a plain mean."""

import difflib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from pydantic import Field

from astrofed.server.aggregation.base import Combination, Coordinatewise, Floats, Mixing, Rule, TooFewReplies
from astrofed.server.aggregation.pipeline import Pipeline
from astrofed.server.aggregation.rules_centre import TrustedReference
from astrofed.server.strategies.memory import Momentum, Step
from astrofed.server.strategies.messages import COUNT, mean_metrics, messages_to, scalars
from astrofed.server.strategies.shares import capped
from astrofed.shared import records, registry
from astrofed.shared.array_forms import view
from astrofed.shared.arrays import from_numpy, to_numpy
from astrofed.shared.plan import Fraction, Named, OptionsT, PlanError, Section, check_options
from astrofed.shared.seeds import derive_seed

DEFAULT_PRE, DEFAULT_RULE = ("arc", "nnm"), "geometric-median"
_log = logging.getLogger(__name__)


class Options(Section):
    """What a plan may say of a robust strategy beside its rule's and pre-aggregators' own keys.

    `momentum`: factor of a running mean of each participant's updates, which the rule then sees (0: none).
    `reduce_f`: go on with a smaller f where fewer replies came than f needs, instead of skipping the round.
    `weight_cap`: the largest share of the model that weights = "examples" may give to one participant.
    `device`: where updates are aggregated, by torch's name ("cuda"); by default compiled code does it on the CPU.
    """

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    reduce_f: bool = False
    weight_cap: Fraction | None = None
    device: str | None = None


def build_pipeline(
    rule: str | None, pre: Sequence[str], f: int | None, options: Mapping[str, Any], own: type[Section] = Options
) -> Pipeline:
    """Build the aggregation that a plan's [strategy] section names; each stage takes its own keys of `options`.

    `own` are the strategy's, which stand among them. Without a rule it is the geometric median of mixed updates, the
    longest of them shortened first (pre = ["arc", "nnm"]). Where participants' data differ, as they do, mixing first
    keeps a rule from taking honest participants for liars, and the three together hold best against the known attacks;
    none of them knows an absolute length.

    Raises:
        PlanError: a name stands in the wrong place, an option is wrong, or f is missing.
        UnknownPlugin: a name that no rule has.
    """
    if rule is None:
        rule, pre = DEFAULT_RULE, pre or DEFAULT_PRE
    classes: dict[str, type[Rule]] = {name: registry.get("rules", name) for name in (*pre, rule)}
    label = " + ".join(registry.find("rules", name).name for name in (*pre, rule))
    taken: tuple[type[Section], ...] = (own, *(cls.Options for cls in classes.values()))
    _check_keys(options, {key for section in taken for key in section.model_fields}, label)
    last = _build(classes[rule], rule, options)
    if not isinstance(last, Combination | Coordinatewise):
        raise PlanError(
            f"strategy.rule: {rule!r} mixes updates and leaves several; write pre = [{rule!r}] and name a rule after it"
        )
    stages = []
    for name in pre:
        stage = _build(classes[name], name, options)
        if not isinstance(stage, Mixing):
            raise PlanError(f"strategy.pre: {name!r} is a rule, which ends the aggregation; write rule = {name!r}")
        stages.append(stage)
    if stages and isinstance(last, Combination) and last.trusts_one:
        raise PlanError(
            f"strategy.pre: {rule!r} measures updates by one participant's own, so none may be mixed before"
        )
    if f is None and last.minimum_replies(1) is not None:
        raise PlanError(f"strategy.f: required by {label}; say how many lying participants it should withstand")
    return Pipeline(label, (*stages, *last.before()), last, f or 0)


def _check_keys(options: Mapping[str, Any], valid: set[str], label: str) -> None:
    for key in options:
        if key not in valid:
            near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(sorted(valid))}"
            raise PlanError(f"strategy.{key}: unknown key for {label!r}; {hint}")


def _build(cls: type[Rule], name: str, options: Mapping[str, Any]) -> Rule:
    return cls(take(cls.Options, name, options))


def take(section: type[OptionsT], name: str, options: Mapping[str, Any]) -> OptionsT:
    """Return the options that a section knows, checked."""
    own = {key: value for key, value in options.items() if key in section.model_fields}
    return check_options(section, Named(name=name, options=own), "strategy")


class RobustStrategy(Strategy):
    """Aggregation that withstands up to f lying participants, by a rule and its pre-aggregators (see `build_pipeline`).

    Replies must have gone through `screen_training`. After each round `weights` says each node's share of the new model
    (None for rules on single coordinates), `left_out` which replies have no share and why, `skipped` why a round left
    the model as it was, if it did, and `notes` what else was out of the ordinary.
    """

    own_options: ClassVar[type[Options]] = Options

    def __init__(
        self,
        rule: str | None = None,
        pre: Sequence[str] = (),
        f: int | None = None,
        weights: Literal["equal", "examples"] = "equal",
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        """Build the strategy.

        Args:
            rule: a registered rule.
            pre: registered pre-aggregators, first to last.
            f: how many lying participants to withstand; only rules that withstand none may go without.
            weights: shares before the rule, equal or by numbers of examples (which screening sets to what each site
                enrolled with; a site that lied there is believed, up to `weight_cap`).
            options: keys of the rule, of the pre-aggregators and of `Options`.
            seed: for pre-aggregators that draw at random.

        Raises:
            PlanError: see `build_pipeline`; or the rule can't weigh by examples.
        """
        self.pipeline = build_pipeline(rule, pre, f, options or {}, self.own_options)
        own = take(Options, "robust", options or {})
        stages, last = self.pipeline.pre, self.pipeline.rule
        if weights == "examples" and (stages or not (isinstance(last, Combination) and last.weighs_examples)):
            raise PlanError(
                f"strategy.weights: {self.pipeline.name} counts all participants alike; remove weights = 'examples', "
                "or use rule = 'multi-krum' or 'mean' without pre"
            )
        if own.weight_cap is not None and weights != "examples":
            raise PlanError("strategy.weight_cap: it caps shares by examples; add weights = 'examples', or remove it")
        if own.device is not None:
            from astrofed.server.aggregation.passes_torch import TorchPasses

            self.pipeline = replace(self.pipeline, device=TorchPasses(own.device))
        self.options = own
        self._by_examples = weights == "examples"
        self._seed = seed
        self._names: dict[int, str] = {}
        self._reference: dict[str, NDArray[Any]] = {}
        self._momentum = Momentum(own.momentum)
        self._step = Step()
        self.weights: dict[int, float] | None = None
        self.left_out: dict[int, str] = {}
        self.skipped: str | None = None
        self.notes: list[str] = []

    def enrolled(self, nodes: Mapping[str, int]) -> None:
        """Take note of who is who, from the participants' names to their nodes."""
        self._names = {node: name for name, node in nodes.items()}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a train message for every node; remember the model that updates are taken from."""
        self._reference = to_numpy(arrays)
        return messages_to(grid.get_node_ids(), MessageType.TRAIN, server_round, arrays, config)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the new model and the mean metrics of those in it; (None, None) where the rule needs more replies."""
        replies = list(replies)
        nodes = [reply.metadata.src_node_id for reply in replies]
        self.weights, self.left_out, self.skipped, self.notes = None, {}, None, []
        given = [records.items(reply.content.array_records["arrays"]) for reply in replies]
        models: list[Any] = [{name: view(array, name) for name, array in held.items()} for held in given]
        metrics = [scalars(reply.content.metric_records["metrics"]) for reply in replies]
        if self.options.momentum:
            names = [self._name(node) for node in nodes]
            self.notes += self._momentum.missing(names)
            models = self._momentum.smooth(self._reference, dict(zip(names, models, strict=True)))
        try:
            pipeline = self._allowed(len(replies)).seeded(derive_seed(self._seed, "rules", server_round))
            onward = self._step.onward(self._reference)
            outcome = pipeline.aggregate(self._reference, models, self._shares(nodes, metrics), onward)
        except TooFewReplies as error:
            self.skipped = str(error)
            return None, None
        if outcome.weights is not None:
            self.weights = dict(zip(nodes, outcome.weights.tolist(), strict=True))
        self.left_out = {nodes[index]: reason for index, reason in outcome.left_out.items()}
        if self._uses_last_step():
            self._step.remember(self._reference, outcome.arrays)
        return _record(outcome.arrays, models, given), mean_metrics(metrics, outcome.weights)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return an evaluate message for every node."""
        return messages_to(grid.get_node_ids(), MessageType.EVALUATE, server_round, arrays, config)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the mean of the metrics that all replies have, all counting alike."""
        metrics = [scalars(reply.content.metric_records["metrics"]) for reply in replies if reply.has_content()]
        return mean_metrics(metrics, None) if metrics else None

    def summary(self) -> None:
        """Log the rule and what it needs."""
        need = self.pipeline.minimum_replies()
        _log.info("%s, f = %d, at least %s replies a round", self.pipeline.name, self.pipeline.f, need)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return the model's last step, if the rule starts from there, and the participants' momentum, if they have."""
        return {**self._step.state_dict(), **self._momentum.state_dict()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take back what `state_dict` returned."""
        self._step.load_state_dict(state)
        self._momentum.load_state_dict(state)

    def _name(self, node: int) -> str:
        return self._names.get(node, f"node {node}")

    def _uses_last_step(self) -> bool:
        rule = self.pipeline.rule
        return isinstance(rule, Combination) and rule.start == "last-step"

    def _allowed(self, n: int) -> Pipeline:
        """Return the pipeline for n replies: with a smaller f, where the plan allows it and they need it."""
        need, f = self.pipeline.minimum_replies(), self.pipeline.largest_f(n)
        if not self.options.reduce_f or need is None or n >= need or not f:
            return self.pipeline
        self.notes.append(f"f lowered from {self.pipeline.f} to {f}: {n} usable replies, {need} needed")
        return replace(self.pipeline, f=f)

    def _shares(self, nodes: Sequence[int], metrics: Sequence[Mapping[str, float]]) -> Floats | None:
        rule = self.pipeline.rule
        if isinstance(rule, TrustedReference):
            trusted = np.array([float(self._name(node) == rule.reference) for node in nodes])
            if not trusted.any():
                raise TooFewReplies(f"{rule.reference!r}, the trusted reference, has no usable reply")
            return trusted
        if not self._by_examples or not metrics:
            return None
        counts = np.array([entry[COUNT] for entry in metrics], dtype=np.float64)
        return capped(counts / counts.sum(), self.options.weight_cap)


def _record(
    arrays: Mapping[str, NDArray[Any]],
    models: Sequence[Mapping[str, NDArray[Any]]],
    given: Sequence[Mapping[str, Array]],
) -> ArrayRecord:
    """Return the new model as a record; an array that is a reply's own goes on as the bytes that came."""
    whole = {
        name: reply[name]
        for model, reply in zip(models, given, strict=True)
        for name, array in arrays.items()
        if array is model[name] and array.flags.c_contiguous
    }
    made = from_numpy({name: array for name, array in arrays.items() if name not in whole})
    return records.arrays({name: whole[name] if name in whole else made[name] for name in arrays})
