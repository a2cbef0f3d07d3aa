"""The plan: one TOML file that says everything a run does, validated whole before anything starts.

Plans are data. They name plug-ins by registered name and never hold code or import paths. Unknown keys are errors that
name the nearest valid key; every error names the key, the value and what would be accepted.
"""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_serializer, model_validator

from astrofed.shared.errors import UserMistake
from astrofed.shared.explain import explain
from astrofed.shared.overrides import apply_override
from astrofed.shared.plan_evolution import Evolution

Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]*$")]
Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Value = bool | int | float | str | tuple[int, ...]
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
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches whose gradients are averaged for one step."""
    optimizer: Literal["adamw", "adam", "sgd", "lion", "muon", "sophia"] = "adamw"
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    gradient_clip: Positive | None = None
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate by the last round, reached along `schedule` (1 keeps it constant)."""
    schedule: Literal["cosine", "linear", "exponential"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 0
    """Rounds in which the learning rate rises linearly to where the schedule begins."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the network's forward and backward pass; weights, losses and physics are always in single precision."""
    checkpoint: bool = False
    """Recompute activations in the backward pass: less memory for more time."""
    deterministic: bool = False
    """Refuse kernels whose results may differ from run to run; on a CPU all that is here are deterministic anyway."""

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if self.optimizer == "sophia" and self.precision == "fp16":
            raise ValueError(
                "optimizer 'sophia' needs second derivatives, which fp16 can't hold; set precision = 'bf16'"
            )
        return self


class Physics(Section):
    """Weights of the physics residuals in the training loss, by constraint; a constraint left out has no weight."""

    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    balance: Literal["fixed", "gradient"] = "fixed"
    """Whether a weight multiplies its residual's penalty as it is, or scaled so that the penalty's gradient by the
    prediction is as long as the error's."""
    fixers: tuple[Literal["mass", "hydrostatic", "energy", "water"], ...] = ()
    """What is corrected in every prediction, in training too, so that a constraint holds."""


class Privacy(Section):
    """Differential privacy at each participant: give `epsilon` (the noise is found) or `noise_multiplier`."""

    epsilon: Positive | None = None
    noise_multiplier: Positive | None = None
    delta: Annotated[float, Field(gt=0, lt=1)]
    clipping_norm: Positive = 1.0
    """No unit's gradient counts for more than this length; with adaptive clipping, the length to begin with."""
    clipping: Literal["flat", "per-layer", "adaptive"] = "flat"
    """A unit's gradient is clipped as a whole, each layer by itself, or as a whole to a norm that follows the units."""
    clipping_quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Adaptive clipping aims at this share of units whose gradients are not clipped."""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Units whose gradients are in memory at once (samples, where units have many); by default a few hundred MB."""
    sampling: Literal["poisson"] = "poisson"
    unit: str

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of epsilon and noise_multiplier")
        if self.clipping != "adaptive" and self.clipping_quantile != 0.5:
            raise ValueError("clipping_quantile is for clipping = 'adaptive'; set that, or leave the quantile out")
        return self

    @field_validator("sampling", mode="before")
    @classmethod
    def _accounted(cls, sampling: object) -> object:
        if sampling != "poisson":
            raise ValueError(
                "epsilon is computed for Poisson sampling, where each step draws every unit independently of the "
                "others; shuffled or fixed batches cost more than it says: leave the key out, or set 'poisson'"
            )
        return sampling


class CentralPrivacy(Section):
    """Differential privacy at the server, for each participant as a whole, against readers of the models.

    Give `epsilon` (the noise is found) or `noise_multiplier`. For strategy "private-mean", which says what is done.
    """

    epsilon: Positive | None = None
    noise_multiplier: Positive | None = None
    delta: Annotated[float, Field(gt=0, lt=1)]
    mechanism: Literal["gaussian", "tree"] = "gaussian"
    """Noise of its own in every round, or noise of a binary tree over the rounds, in which noise adds up slowly."""
    sampling_rate: Fraction = 1.0
    """Probability with which a participant is asked in a round ("gaussian"); whom it was is kept secret."""
    cohorts: Annotated[int, Field(ge=2)] | None = None
    """Groups of participants that take turns ("tree"); each participant is asked once in as many rounds."""
    clipping_norm: Positive = 1.0
    """No participant's update counts for more than this length; with adaptive clipping, the length to begin with."""
    clipping: Literal["fixed", "adaptive"] = "fixed"
    clipping_quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Adaptive clipping aims at this share of updates that are not clipped."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of epsilon and noise_multiplier")
        if self.mechanism == "tree" and self.cohorts is None:
            raise ValueError("mechanism = 'tree' needs cohorts: in how many groups the participants take turns")
        if self.mechanism == "tree" and (self.sampling_rate != 1 or self.clipping == "adaptive"):
            raise ValueError(
                "mechanism = 'tree' asks by turns and keeps one norm for a whole tree: remove sampling_rate and "
                "clipping = 'adaptive', or use mechanism = 'gaussian'"
            )
        if self.mechanism == "gaussian" and self.cohorts is not None:
            raise ValueError("cohorts is for mechanism = 'tree'; set that, or use sampling_rate")
        if self.clipping != "adaptive" and self.clipping_quantile != 0.5:
            raise ValueError("clipping_quantile is for clipping = 'adaptive'; set that, or leave the quantile out")
        return self


class Meta(Section):
    """Few-shot learning, for mode 'meta': the initial weights from which every task is learned in a few steps."""

    algorithm: Literal["maml", "fomaml", "reptile", "anil"] = "maml"
    tasks: Name | None = None
    """What one task is, such as "stars" or "sites"; by default what the plan's task names first."""
    episodes: Annotated[int, Field(ge=1)] = 100
    """Episodes that each participant trains on in the whole run; `training.batch_size` of them make one step."""
    support_shots: Annotated[int, Field(ge=1)] = 5
    """Samples that a task is adapted to, at most; the query's are others."""
    query_shots: Annotated[int, Field(ge=1)] = 5
    """Samples that tell, after the adaptation, how good the initial weights were, at most."""
    inner_rate: Positive = 0.01
    inner_steps: Annotated[int, Field(ge=1, le=1000)] = 1
    """Steps of gradient descent at `inner_rate` from the initial weights to a task's own."""
    inner_clip: Positive | None = None
    """The longest gradient of one such step, by its Euclidean length; odd tasks can make steps diverge without it."""
    adaptation_steps: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """The same where models are evaluated and kept; by default as many as in training."""
    head: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Names (or their beginnings) of the weights that "anil" adapts; by default what the model calls its head."""

    def steps(self, rounds: int, batch_size: int) -> int:
        """Return how many steps of `batch_size` episodes a participant takes in a round, rounded up."""
        return -(-self.episodes // (rounds * batch_size))


class Customer(Section):
    """For mode 'customer': which site is the customer's, and how it gets a model of its own from the shared one."""

    site: Name | None = None
    """A training participant; by default the last one."""
    epochs: Annotated[int, Field(ge=1)] = 5
    """Passes over its own training data from the shared model to its own, which never leaves it."""
    learning_rate: Positive | None = None
    """By default that of the plan's training."""


class Search(Section):
    """Architecture search, for mode "nas": candidates are this plan with other values of some of its keys."""

    space: Annotated[dict[str, Annotated[tuple[Value, ...], Field(min_length=1)]], Field(min_length=1)]
    """The values that each key below `model` or `training` may take: {"model.depth" = [1, 2], ...}."""
    algorithm: Literal["nsga2", "random", "differentiable"] = "nsga2"
    """NSGA-II, chance, or one run that trains all candidates mixed by weights that are trained with them."""
    candidates: Annotated[int, Field(ge=1)] = 16
    """How many are proposed in all."""
    population: Annotated[int, Field(ge=2)] = 8
    """How many are proposed at once; the better part of them is trained further."""
    rungs: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Rounds after which candidates are compared; by default a quarter, a half and all of the plan's."""
    keep: Fraction = 0.25
    """The share of a generation that goes on at each rung, the better part."""
    rounds: Annotated[int, Field(ge=1)] | None = None
    """The most rounds of training that all candidates may take together."""
    objectives: Annotated[tuple[Literal["loss", "parameters", "latency"], ...], Field(min_length=1)] = (
        "loss",
        "parameters",
    )
    max_parameters: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"rungs: must grow (given: {list(self.rungs)})")
        if self.objectives[0] != "loss" or len(set(self.objectives)) != len(self.objectives):
            raise ValueError("objectives: 'loss' comes first, and each stands once")
        if self.population > self.candidates:
            raise ValueError(f"population: {self.population} is more than the {self.candidates} candidates in all")
        return self

    def steps(self, rounds: int) -> tuple[int, ...]:
        """Return the rungs for a plan of so many rounds."""
        return self.rungs or tuple(sorted({max(1, rounds // 4), max(1, rounds // 2), rounds}))


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
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        raise PlanError(f"{where}: " + explain(error, Plan)) from None


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
        for key in ("data", "policy"):
            path = participant.get(key) if isinstance(participant, dict) else None
            if path and isinstance(path, str) and not path.startswith("bundled:"):
                participant[key] = str(folder / path)
