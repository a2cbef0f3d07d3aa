"""The plan: one TOML file that says everything a run does, validated whole before anything starts.

Plans are data. They name plug-ins by registered name and never hold code or import paths. Unknown keys are errors that
name the nearest valid key; every error names the key, the value and what would be accepted.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator
from pydantic_core import ErrorDetails

from astrofed.shared.errors import UserMistake

Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]*$")]
Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
OptionsT = TypeVar("OptionsT", bound=BaseModel)


class PlanError(UserMistake):
    """A plan that can't be run: an unknown key, a value out of range, a combination that makes no sense."""


class Section(BaseModel):
    """Base of all plan sections: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Named(Section):
    """A section that names a plug-in; its other keys are the plug-in's own options, checked when it is built."""

    name: Name
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"name": data}
        if not isinstance(data, dict) or not isinstance(data.get("options", {}), dict):
            return data
        own = {key: value for key, value in data.items() if key in cls.model_fields}
        rest = {key: value for key, value in data.items() if key not in cls.model_fields}
        return {**own, "options": {**own.get("options", {}), **rest}}

    @model_serializer(mode="wrap")
    def _flatten_options(self, handler: Any) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        options = data.pop("options")
        return {**data, **options}


class Training(Section):
    """What one participant does in one round."""

    epochs: Annotated[int, Field(ge=1)] = 1
    max_steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 4
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    gradient_clip: Positive | None = None
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate by the last round, followed along a cosine (1 keeps it constant)."""


class Physics(Section):
    """Weights of the physics residuals in the training loss, by constraint; a constraint left out has no weight."""

    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}


class Privacy(Section):
    """Differential privacy at each participant: give `epsilon` (the noise is found) or `noise_multiplier`."""

    epsilon: Positive | None = None
    noise_multiplier: Positive | None = None
    delta: Annotated[float, Field(gt=0, lt=1)]
    clipping_norm: Positive = 1.0
    unit: str

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of epsilon and noise_multiplier")
        return self


class Strategy(Named):
    """How the server turns replies into the next model: a robust `rule` of ours, or any registered Flower strategy."""

    name: Name = "robust"
    rule: Name | None = None
    pre: tuple[Name, ...] = ()
    f: Annotated[int, Field(ge=0)] | None = None
    weights: Literal["equal", "examples"] = "equal"
    quorum: Annotated[int, Field(ge=1)] = 1
    timeout_s: Positive = 3600.0


class Engine(Section):
    """Where messages travel: in this process, or through Flower's simulation runtime on Ray."""

    name: Literal["embedded", "ray"] = "embedded"
    workers: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads that one client's tensor operations use; by default the cores shared out over the workers."""


class Participant(Section):
    """One site of a simulated federation: its name, its data and, for tests of robustness, the attack it mounts."""

    name: Name
    data: Annotated[str, Field(min_length=1)]
    role: Literal["train", "evaluate"] = "train"
    attack: Named | None = None


class Plan(Section):
    """Everything a run does. Reproducible from this and the data alone."""

    name: Name
    mode: Literal["single", "federated"] = "federated"
    seed: Annotated[int, Field(ge=0)] = 0
    rounds: Annotated[int, Field(ge=1)] = 1
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    """Rounds between evaluations; the initial and the final model are always evaluated."""
    task: Named
    model: Named
    training: Training = Training()
    physics: Physics = Physics()
    privacy: Privacy | None = None
    strategy: Strategy = Strategy(name="FedAvg")
    engine: Engine = Engine()
    participants: Annotated[tuple[Participant, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [participant.name for participant in self.participants]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"participants: the name {twice[0]!r} stands twice; names must differ")
        trainers = [participant for participant in self.participants if participant.role == "train"]
        if not trainers:
            raise ValueError("participants: none has role = 'train'; at least one must train")
        if self.mode == "single" and len(trainers) != 1:
            raise ValueError(
                f"mode 'single' takes one training participant, the plan has {len(trainers)}; "
                "use mode = 'federated' or `astrofed train`, which keeps the first"
            )
        return self

    @property
    def trainers(self) -> tuple[Participant, ...]:
        """The participants that train, in the plan's order."""
        return tuple(p for p in self.participants if p.role == "train")

    def to_json(self) -> str:
        """Return the resolved plan as compact JSON, the form in which it travels."""
        return self.model_dump_json(exclude_none=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved plan as plain data that TOML can hold (no nulls)."""
        return self.model_dump(mode="json", exclude_none=True)


@lru_cache(maxsize=16)
def plan_from_json(text: str) -> Plan:
    """Return the plan that `Plan.to_json` wrote; parsed once for each text, since every message carries it."""
    return Plan.model_validate_json(text)


def load_plan(source: Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Plan:
    """Read a plan from a TOML file or a mapping, apply `key=value` overrides, and validate the whole.

    Relative `data` paths are taken from the file's folder; `bundled:` names stay as they are. In an override, an item
    of a list goes by its name or its number, and an empty value removes the key: "participants.continents.attack=".

    Raises:
        PlanError: the file is missing or no TOML, a key is unknown, a value is out of range.
    """
    if isinstance(source, Path):
        data, where = _read_toml(source), str(source)
    else:
        data, where = dict(source), "plan"
    data = json.loads(json.dumps(data, default=str))
    for override in overrides:
        _apply_override(data, override)
    if isinstance(source, Path):
        _anchor_paths(data, source.resolve().parent)
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        raise PlanError(f"{where}: " + _explain(error, Plan)) from None


def check_options(options: type[OptionsT], given: Named, where: str) -> OptionsT:
    """Validate a plug-in's options against its `Options` model; `where` is the plan's section, for messages.

    Raises:
        PlanError: an unknown option (with the nearest valid one) or a value out of range.
    """
    try:
        return options.model_validate(given.options)
    except ValidationError as error:
        own = [key for key in type(given).model_fields if key not in ("name", "options")]
        raise PlanError(_explain(error, options, where, f" for {given.name!r}", own)) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.toml")], n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a plan in TOML"
        raise PlanError(f"plan file {path} does not exist; {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"plan file {path} can't be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"plan file {path} is not valid TOML: {error}") from None


def _anchor_paths(data: dict[str, Any], folder: Path) -> None:
    participants = data.get("participants")
    for participant in participants if isinstance(participants, list) else []:
        path = participant.get("data") if isinstance(participant, dict) else None
        if path and isinstance(path, str) and not path.startswith("bundled:"):
            participant["data"] = str(folder / path)


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, text = (part.strip() for part in override.partition("="))
    path = [quoted or plain for quoted, plain in re.findall(r'"([^"]+)"|([^."]+)', key)]
    if not equals or not path:
        raise PlanError(f"--set {override!r}: expected key=value, such as --set rounds=3 or --set strategy.f=1")
    target: Any = data
    for part in path[:-1]:
        target = _child(target, part, key, create=bool(text))
    last: Any = _index(target, path[-1], key) if isinstance(target, list) else path[-1]
    if text:
        target[last] = _value(text)
    elif isinstance(target, list) or last in target:
        del target[last]
    else:
        raise PlanError(f"--set {key}=: there is no {last!r} to remove; there are: {', '.join(target) or 'no keys'}")


def _value(text: str) -> Any:
    """A TOML value as plain data, or the text itself where it is none: --set strategy=krum needs no quotes."""
    try:
        return json.loads(json.dumps(tomllib.loads(f"value = {text}")["value"], default=str))
    except tomllib.TOMLDecodeError:
        return text


def _child(target: Any, part: str, key: str, *, create: bool) -> Any:
    """Return what lies under one part of an override's key; a table that is not there yet is made."""
    place: Any = _index(target, part, key) if isinstance(target, list) else part
    if isinstance(target, dict) and create:
        target.setdefault(part, {})
    child = target[place] if isinstance(target, list) else target.get(place)
    if isinstance(child, str):  # strategy = "krum" is short for strategy.name = "krum"
        child = target[place] = {"name": child}
    if not isinstance(child, dict | list):
        raise PlanError(f"--set {key}: {part!r} holds {child!r}, which has no keys below it")
    return child


def _index(items: list[Any], part: str, key: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else item for item in items]
    if part in names:
        return names.index(part)
    if re.fullmatch(r"\d+", part) and int(part) < len(items):
        return int(part)
    known = ", ".join(str(name) for name in names if name is not None)
    raise PlanError(f"--set {key}: no item {part!r}; give one of: {known}; or its number, 0 to {len(items) - 1}")


def _explain(
    error: ValidationError, model: type[BaseModel], where: str = "", owner: str = "", also: Iterable[str] = ()
) -> str:
    """Say in one line what is wrong: every key with its path, the value, and what would be accepted.

    `also` are keys that are valid beside the model's own at its top level.
    """
    return "; ".join(_problem(problem, model, where, owner, also) for problem in error.errors(include_url=False))


def _problem(problem: ErrorDetails, model: type[BaseModel], where: str, owner: str, also: Iterable[str]) -> str:
    location, kind, given = problem["loc"], problem["type"], problem["input"]
    key = ".".join(str(part) for part in (where, *location) if part != "") or "plan"
    if kind == "extra_forbidden":
        valid = [*_keys_at(model, location[:-1]), *(also if len(location) == 1 else ())]
        return f"{key}: unknown key{owner}; {_hint(str(location[-1]), valid)}"
    if kind == "missing":
        near = difflib.get_close_matches(str(location[-1]), _unknown_in(given), n=1, cutoff=0.5)
        return f"{key}: required, but missing" + (f"; is {near[0]!r} meant for it?" if near else "")
    if kind in ("model_type", "dict_type"):
        return f"{key}: expected a table of keys (given: {given!r})"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" + (f" (given: {given!r})" if isinstance(given, str | int | float | list | tuple) else "")


def _hint(word: str, valid: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid) or 'none'}"


def _unknown_in(given: Any) -> list[str]:
    """The keys of a plug-in's table that went to its options: one of them may be a misspelt `name`."""
    options = given.get("options") if isinstance(given, dict) else None
    return list(options) if isinstance(options, dict) else []


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    section: Any = model
    for part in location:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_of(section.model_fields[part].annotation)
    return list(section.model_fields)


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if argument is not Ellipsis and (found := _section_of(argument)) is not None:
            return found
    return None
