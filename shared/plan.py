"""The plan: one TOML file that says everything a run does, validated whole before anything starts.

Plans are data. They name plug-ins by registered name and never hold code or import paths. Unknown keys are errors that
name the nearest valid key; every error names the key, the value and what would be accepted. The larger sections lie in
modules of their own and are exported from here.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from astrofed.shared.explain import explain
from astrofed.shared.overrides import apply_override
from astrofed.shared.plan_base import Fraction, Name, Named, PlanError, Positive, Section, Value
from astrofed.shared.plan_evolution import Evolution
from astrofed.shared.plan_modes import Customer, Meta, Search
from astrofed.shared.plan_privacy import CentralPrivacy, Privacy, SharedNoise, not_with_privacy, not_with_shared_noise
from astrofed.shared.plan_training import Physics, Training
from astrofed.shared.toml_file import as_model, read_toml

__all__ = [
    "CentralPrivacy", "Customer", "Engine", "Evolution", "Fraction", "Meta", "Name", "Named", "OptionsT", "Participant",
    "Physics", "Plan", "PlanError", "Positive", "Privacy", "Search", "Section", "SharedNoise", "Strategy", "Training",
    "Value", "check_options", "load_plan", "plan_from_json",
]  # fmt: skip
OptionsT = TypeVar("OptionsT", bound=BaseModel)


class Strategy(Named):
    """How the server turns replies into the next model: a robust `rule` of ours, or any registered Flower strategy."""

    name: Name = "robust"
    rule: Name | None = None
    pre: tuple[Name, ...] = ()
    f: Annotated[int, Field(ge=0)] | None = None
    weights: Literal["equal", "examples"] = "equal"
    quorum: Annotated[int, Field(ge=1)] = 1
    timeout_s: Positive = 3600.0
    buffer: Annotated[int, Field(ge=1)] | None = None
    """Asynchronous rounds (FedBuff): the model moves on after so many replies, and slow sites' replies count late."""
    max_staleness: Annotated[int, Field(ge=0)] = 10
    """With `buffer`: how many rounds ago a site may have been asked for its reply to be used."""
    membership: Literal["fixed", "open"] = "fixed"
    """"open": the run begins with a quorum, and participants of the plan may join and leave between rounds."""
    max_norm: Positive | None = None
    """The longest update, by its Euclidean length over all arrays, that is used; longer ones are quarantined."""


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
    policy: Annotated[str, Field(min_length=1)] | None = None
    """A file with the site's policy, to be tried in a simulation; at an institution only its own counts."""


class Plan(Section):
    """Everything a run does. Reproducible from this and the data alone."""

    name: Name
    mode: Literal["single", "federated", "multimodal", "meta", "customer", "nas", "evolution"] = "federated"
    seed: Annotated[int, Field(ge=0)] = 0
    rounds: Annotated[int, Field(ge=1)] = 1
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    """Rounds between evaluations; the initial and the final model are always evaluated."""
    task: Named
    model: Named
    training: Training = Training()
    meta: Meta | None = None
    """Only mode 'meta' looks at it; there an absent section is one of defaults."""
    customer: Customer | None = None
    """Only mode 'customer' looks at it; there an absent section is one of defaults."""
    physics: Physics = Physics()
    privacy: Privacy | None = None
    central_privacy: CentralPrivacy | None = None
    strategy: Strategy = Strategy(name="FedAvg")
    search: Search | None = None
    evolution: Evolution | None = None
    engine: Engine = Engine()
    participants: Annotated[tuple[Participant, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        mode = data.get("mode") if isinstance(data, dict) else None
        return {mode: {}, **data} if mode in ("meta", "customer") else data

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
        mistake = not_with_privacy(self.training) if self.privacy is not None else None
        if mistake is None and self.privacy is not None and self.privacy.shared_noise is not None:
            mistake = not_with_shared_noise(self.privacy.shared_noise, self.training, len(trainers))
        if mistake is not None:
            raise ValueError(mistake)
        self._check_search()
        if self.mode == "customer" and self.customer_site not in [trainer.name for trainer in trainers]:
            raise ValueError(
                f"customer.site: {self.customer_site!r} is no training participant; they are: "
                f"{', '.join(trainer.name for trainer in trainers)}"
            )
        return self

    @property
    def customer_site(self) -> str | None:
        """The customer's participant in mode 'customer', else None."""
        if self.mode != "customer" or self.customer is None:
            return None
        return self.customer.site or self.trainers[-1].name

    def _check_search(self) -> None:
        if (self.mode == "nas") != (self.search is not None):
            raise ValueError(
                "search: the section belongs to mode = 'nas' and mode 'nas' needs it; give both or neither"
            )
        if (self.mode == "evolution") != (self.evolution is not None):
            raise ValueError(
                "evolution: the section belongs to mode = 'evolution', which needs it; give both or neither"
            )
        if self.search is not None and self.search.steps(self.rounds)[-1] > self.rounds:
            raise ValueError(f"search.rungs: the last is past the plan's {self.rounds} rounds; raise rounds")

    @property
    def trainers(self) -> tuple[Participant, ...]:
        """The participants that train, in the plan's order."""
        return tuple(p for p in self.participants if p.role == "train")

    @property
    def needed_replies(self) -> int:
        """How many updates a round needs: the strategy's quorum, or all where noise is shared."""
        return len(self.trainers) if self.shares_noise else self.strategy.quorum

    @property
    def shares_noise(self) -> bool:
        """Whether the training participants share the noise that hides their data."""
        return self.privacy is not None and self.privacy.shared_noise is not None

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
        BadOverride: an override is not key=value, or its key leads nowhere.
    """
    if isinstance(source, Path):
        data, where = _read_toml(source), str(source)
    else:
        data, where = dict(source), "plan"
    data = json.loads(json.dumps(data, default=str))
    for override in overrides:
        apply_override(data, override)
    if isinstance(source, Path):
        _anchor_paths(data, source.resolve().parent)
    return as_model(Plan, data, PlanError, where)


def check_options(options: type[OptionsT], given: Named, where: str) -> OptionsT:
    """Validate a plug-in's options against its `Options` model; `where` is the plan's section, for messages.

    Raises:
        PlanError: an unknown option (with the nearest valid one) or a value out of range.
    """
    try:
        return options.model_validate(given.options)
    except ValidationError as error:
        own = [key for key in type(given).model_fields if key not in ("name", "options")]
        raise PlanError(explain(error, options, where, f" for {given.name!r}", own)) from None


def _read_toml(path: Path) -> dict[str, Any]:
    there = {plan.stem: plan for folder in (Path("configs"), path.parent) for plan in folder.glob("*.toml")}
    near = difflib.get_close_matches(path.stem, there, n=1)
    hint = f"did you mean {there[near[0]]}?" if near else "give the path of a plan in TOML"
    return read_toml(path, PlanError, PlanError(f"plan file {path} does not exist; {hint}"), "plan file ")


def _anchor_paths(data: dict[str, Any], folder: Path) -> None:
    participants = data.get("participants")
    for participant in participants if isinstance(participants, list) else []:
        for key in ("data", "policy"):
            path = participant.get(key) if isinstance(participant, dict) else None
            if path and isinstance(path, str) and not path.startswith("bundled:"):
                participant[key] = str(folder / path)
