"""From a plan's [strategy] section to a strategy, ours or any registered one, and to what it guarantees."""

import difflib
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from flwr.serverapp.strategy import Strategy
from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from astrofed.server.aggregation.pipeline import Pipeline
from astrofed.server.aggregation.rules_centre import TrustedReference
from astrofed.server.privacy.conditions import check_central, check_shared
from astrofed.server.strategies.blocks import BlockMean, block_of
from astrofed.server.strategies.central import PrivateMean, guarantee
from astrofed.server.strategies.robust import RobustStrategy
from astrofed.shared import registry
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import Plan, PlanError

# How many nodes Flower's strategies wait for without end; their own default of 2 suits no single participant.
_WAITED_FOR = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
# What replies are called and weighed by: screening checks these and no others.
_FIXED = {"arrayrecord_key": "arrays", "configrecord_key": "config", "weighted_by_key": "num-examples"}


def build_strategy(plan: Plan) -> Strategy:
    """Build the plan's strategy.

    Ours takes `rule`, `pre`, `f` and `weights`. Any other takes the section's further keys as its constructor's
    arguments, and these four are not used: `--set strategy.name=FedAvg` shows what a robust plan is without its rule.

    Raises:
        PlanError: an option is unknown, of the wrong type, or missing; n and f give no guarantee; [central_privacy]
            could not keep its epsilon.
        UnknownPlugin: a name that no strategy or rule has.
    """
    section = plan.strategy
    cls: type[Strategy] = registry.get("strategies", section.name)
    check_central(plan)
    check_shared(plan)
    if section.membership == "open" and plan.central_privacy is not None:
        raise PlanError("strategy.membership: [central_privacy] counts on fixed participants; remove one of the two")
    if section.buffer is not None:
        _check_buffer(plan, section.buffer)
    if issubclass(cls, PrivateMean):
        return cls(plan)
    if section.quorum > len(plan.trainers):
        raise PlanError(f"strategy.quorum: {section.quorum} replies can't come from {len(plan.trainers)} participants")
    if not issubclass(cls, RobustStrategy):
        return _build_other(cls, plan)
    try:
        strategy = cls(section.rule, section.pre, section.f, section.weights, section.options, plan.seed)
    except PlanError as error:
        raise PlanError(_with_largest_f(str(error), plan)) from None
    _check_participants(strategy.pipeline, plan)
    _check_reference(strategy.pipeline, plan)
    if isinstance(strategy, BlockMean):
        strategy.declare(plan, [block_of(name) for name in build_model(plan).state_dict()])
    return strategy


def check_guarantee(plan: Plan) -> list[str]:
    """Return what the plan's strategy guarantees against lying participants (errors as `build_strategy`)."""
    strategy, section, n = build_strategy(plan), plan.strategy, plan.strategy.buffer or len(plan.trainers)
    if isinstance(strategy, PrivateMean):
        return guarantee(plan)
    if not isinstance(strategy, RobustStrategy):
        lines = [
            f"{section.name}: no guarantee against lying participants that astrofed knows of (name = 'robust' has)"
        ]
        unused = [key for key in ("rule", "pre", "f") if getattr(section, key) not in (None, ())]
        return lines + ([f"strategy.{', strategy.'.join(unused)}: not used by {section.name}"] if unused else [])
    pipeline = strategy.pipeline
    blocks = strategy.promises if isinstance(strategy, BlockMean) else []
    if pipeline.f == 0:
        return [f"{pipeline.name} with f = 0: no guarantee; one lying participant can move the model", *blocks]
    need = pipeline.minimum_replies()
    fewer = "goes on with a smaller f" if strategy.options.reduce_f else "leaves the model as it is"
    lines = [
        f"{pipeline.name} tolerates f = {pipeline.f} of {n} {_counted(plan)} (needs n >= {need}); "
        f"a round with fewer than {need} usable replies {fewer}"
    ]
    if isinstance(pipeline.rule, TrustedReference):
        lines.append(f"{pipeline.name} trusts {pipeline.rule.reference!r}: if it lies, the model is its own")
    elif not any(stage.pools for stage in pipeline.pre):
        lines.append(f"{pipeline.name} without mixing first (pre = ['nnm']): weak where the participants' data differ")
    if section.weights == "examples":
        lines.append("weights = 'examples': believes the number of examples that a participant enrols with")
    return lines + blocks


def _counted(plan: Plan) -> str:
    return "training participants" if plan.strategy.buffer is None else "replies in each buffer"


def _check_buffer(plan: Plan, buffer: int) -> None:
    section, trainers = plan.strategy, len(plan.trainers)
    if buffer > trainers:
        raise PlanError(f"strategy.buffer: {buffer} replies can't come from {trainers} participants")
    if section.quorum > buffer:
        raise PlanError(f"strategy.quorum: {section.quorum} is more than the buffer of {buffer}; lower it")
    if plan.central_privacy is not None:
        raise PlanError(
            "strategy.buffer: who replies first is not a random sample, so the noise of [central_privacy] would not "
            "hold what it says; remove one of the two"
        )
    for key in _WAITED_FOR:
        given = section.options.get(key, section.options.get(key.replace("_", "-"), 1))
        if given != 1:
            raise PlanError(f"strategy.{key}: with a buffer sites are asked as they become idle; remove the key")


def _check_participants(pipeline: Pipeline, plan: Plan) -> None:
    n = plan.strategy.buffer or len(plan.trainers)
    need, largest = pipeline.minimum_replies(), pipeline.largest_f(n)
    if need is None:
        mend = f"the largest f for {n} is {largest}" if largest else "give f = 0 or another rule"
        raise PlanError(f"strategy.f: {pipeline.name} {pipeline.limit}; {mend}")
    if need > n:
        mend = f"the largest f for {n} is {largest}" if largest is not None else "choose a rule that needs fewer"
        raise PlanError(
            f"strategy.f: {pipeline.name} with f = {pipeline.f} needs {need} {_counted(plan)}; the plan has {n}; {mend}"
        )


def _check_reference(pipeline: Pipeline, plan: Plan) -> None:
    if isinstance(pipeline.rule, TrustedReference) and plan.strategy.buffer is not None:
        raise PlanError(
            f"strategy.buffer: {pipeline.name} needs its reference's reply in every step; remove the buffer"
        )
    names = [participant.name for participant in plan.trainers]
    if isinstance(pipeline.rule, TrustedReference) and pipeline.rule.reference not in names:
        near = difflib.get_close_matches(pipeline.rule.reference, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"give one of: {', '.join(names)}"
        raise PlanError(f"strategy.reference: no training participant is named {pipeline.rule.reference!r}; {hint}")


def _with_largest_f(message: str, plan: Plan) -> str:
    """Complete the message that f is missing by the largest one that the plan's participants allow."""
    section, n = plan.strategy, plan.strategy.buffer or len(plan.trainers)
    if not message.startswith("strategy.f:") or section.f is not None:
        return message
    largest = RobustStrategy(section.rule, section.pre, 0, section.weights, section.options).pipeline.largest_f(n)
    return f"{message}; {n} training participants allow " + (f"f up to {largest}" if largest is not None else "none")


@dataclass(frozen=True)
class _Parameter:
    """One constructor argument that a plan may give."""

    required: bool
    adapter: TypeAdapter[Any] | None  # None: any value


def _build_other(cls: type[Strategy], plan: Plan) -> Strategy:
    name, parameters = plan.strategy.name, _parameters(cls)
    values: dict[str, Any] = {}
    for given, value in plan.strategy.options.items():
        key = given.replace("-", "_")
        if key not in parameters:
            near = difflib.get_close_matches(key, parameters, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(parameters) or 'none'}"
            raise PlanError(f"strategy.{given}: unknown key for {name!r}; {hint}")
        if key in values:
            raise PlanError(f"strategy.{given}: given twice, with a hyphen and with an underscore")
        if value != _FIXED.get(key, value):
            raise PlanError(f"strategy.{given}: is {_FIXED[key]!r} in every reply here, not {value!r}; remove the key")
        values[key] = _checked(parameters[key], given, value, name)
    missing = [key for key, parameter in parameters.items() if parameter.required and key not in values]
    if missing:
        raise PlanError(f"strategy.{missing[0]}: required by {name!r}, but missing")
    _set_waiting(values, parameters, plan)
    try:
        return cls(**values)
    except Exception as error:  # a constructor that we don't know may raise anything
        raise PlanError(f"strategy {name!r} refuses its options: {type(error).__name__}: {error}") from error


def _set_waiting(values: dict[str, Any], parameters: Iterable[str], plan: Plan) -> None:
    for key in _WAITED_FOR:
        if key not in parameters:
            continue
        given = values.setdefault(key, 1)
        there = len(plan.participants if key == "min_evaluate_nodes" else plan.trainers)
        if isinstance(given, int) and given > there:
            raise PlanError(f"strategy.{key}: {given} nodes would be waited for without end; the plan has {there}")


def _checked(parameter: _Parameter, key: str, value: Any, name: str) -> Any:
    if parameter.adapter is None:
        return value
    try:
        return parameter.adapter.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise PlanError(f"strategy.{key}: {problem} (given: {value!r} for {name!r})") from None


def _parameters(cls: type[Strategy]) -> dict[str, _Parameter]:
    """Return the constructor's arguments by name; those that it passes on to a base class count as its own."""
    found: dict[str, _Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        init = vars(base)["__init__"]
        signature = list(inspect.signature(init).parameters.values())[1:]
        hints = _hints(init)
        for item in signature:
            if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY):
                found.setdefault(item.name, _Parameter(item.default is item.empty, _adapter(hints.get(item.name))))
        if not any(item.kind is item.VAR_KEYWORD for item in signature):
            break
    return found


def _hints(function: Any) -> Mapping[str, Any]:
    try:
        return get_type_hints(function)
    except NameError:  # a hint that only type checkers can see
        return {}


def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    if hint is None:
        return None
    try:
        return TypeAdapter(hint)
    except PydanticSchemaGenerationError:  # a type that no TOML value has, such as a model
        return None
