"""A site's policy: one TOML file, the site's own, that says who may ask for what and what may leave.

What it doesn't name is not allowed, and every default is the private one: an empty policy lets nothing run.
Coordinators are known by their public keys (Ed25519, RFC 8032). Rules stand in `[data]` for every dataset; a table
`[datasets.NAME]` gives a dataset, known by its `path`, rules of its own, and takes from `[data]` what it leaves out.
"""

import re
from collections.abc import Iterable
from datetime import datetime, time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Name, Positive, Section, SharedNoise
from astrofed.shared.registry import normalise
from astrofed.shared.toml_file import as_model, read_toml

POLICY_FILE = "policy.toml"  # in a site's home folder
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
Pattern = Annotated[str, Field(min_length=1, max_length=200)]
Mode = Annotated[str, Field(pattern=r"^[a-z][a-z-]*$")]


class PolicyError(UserMistake):
    """A policy that can't be used: the file is missing, a key is unknown, a value is out of range."""


class Coordinator(Section):
    """Who may send plans to this site: whoever signs with that key."""

    name: Name
    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Ed25519, 32 bytes in hexadecimal digits."""


class Peer(Section):
    """Another site, with which this one may share noise: whoever has that key."""

    name: Name
    """As plans name it."""
    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """X25519, 32 bytes in hexadecimal digits; `astrofed client noise-key` prints it at that site."""


class MetricNoise(Section):
    """Gaussian noise on metrics: each release is one step of that noise multiplier in the site's ledger."""

    multiplier: Annotated[float, Field(ge=0.3, le=1e4)]
    """Standard deviation of the noise, in units of what one privacy unit can change."""
    bounds: Annotated[dict[Pattern, Positive], Field(min_length=1)]
    """Largest root mean square error of one unit that counts, by metric or pattern, in the metric's own unit."""

    def bound(self, metric: str) -> float | None:
        """Return the bound of a metric, that of its first pattern; None where it has none."""
        return next((bound for pattern, bound in self.bounds.items() if fnmatchcase(metric, pattern)), None)


class DataRules(Section):
    """What may happen with a dataset, and what of it may leave."""

    privacy: Literal["required", "optional"] = "required"
    """Whether a plan must train with differential privacy."""
    epsilon: Positive = 1.0
    """What all private training and noisy metrics on the dataset may ever come to, at `delta`, over all runs."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    shared_noise: SharedNoise | None = None
    """Allows noise that is shared with the peers, where the plan withstands at least so many colluding ones."""
    max_rounds: Annotated[int, Field(ge=1)] = 50
    hours: tuple[str, ...] = ()
    """When requests are answered, by this machine's clock, such as "22:00-06:00"; empty: at any time."""
    max_update_norm: Positive | None = None
    """The longest update that may leave, by its Euclidean length over all arrays; None: any."""
    metrics: tuple[Pattern, ...] = ()
    """Names of the metrics that may leave; `*` stands for any text, also with slashes."""
    min_units: Annotated[int, Field(ge=1)] = 10
    """The fewest privacy units that a metric may be of."""
    digits: Annotated[int, Field(ge=1, le=17)] | None = 2
    """Significant digits to which metrics are rounded, where no noise is added; None: all."""
    noise: MetricNoise | None = None
    statistics: tuple[Pattern, ...] = ()
    """Names of the statistics for standardisation that may leave, exact; see `metrics`."""
    describe: bool = False
    """Whether the task's line of words about the data leaves when the site enrols."""

    @field_validator("hours")
    @classmethod
    def _hours(cls, hours: tuple[str, ...]) -> tuple[str, ...]:
        for each in hours:
            if not _HOURS.fullmatch(each):
                raise ValueError(f"{each!r} is no span of hours; write it as '22:00-06:00'")
        return hours

    def allows_metric(self, name: str) -> bool:
        """Say whether the list of metrics has this one."""
        return _matches(name, self.metrics)

    def allows_statistic(self, name: str) -> bool:
        """Say whether the list of statistics has this one."""
        return _matches(name, self.statistics)

    def open_at(self, now: datetime) -> bool:
        """Say whether requests are answered at that local time."""
        return not self.hours or any(_within(now.time(), each) for each in self.hours)


class DatasetRules(DataRules):
    """Rules of one dataset."""

    path: Annotated[str, Field(min_length=1)]
    """Where the dataset lies; relative to the policy's file."""


class Policy(Section):
    """What a site allows. Frozen; equal policies allow the same."""

    coordinators: tuple[Coordinator, ...] = ()
    """Whose plans are looked at at all; who is not here is refused by the client service."""
    peers: tuple[Peer, ...] = ()
    """With whom noise may be shared (`shared_noise`)."""
    modes: tuple[Mode, ...] = ()
    tasks: tuple[Name, ...] = ()
    models: tuple[Name, ...] = ()
    plugins: tuple[Annotated[str, Field(min_length=1)], ...] = ("astrofed",)
    """Where tasks and models may come from: names of installed packages, or files of this site's, relative to here."""
    data: DataRules = DataRules()
    datasets: dict[Name, DatasetRules] = Field(default={})
    _source: Path | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, given: Any) -> Any:
        """Give each dataset the rules of [data] that it has none of its own for."""
        if not isinstance(given, dict) or not isinstance(given.get("datasets"), dict):
            return given
        shared = given.get("data", {})
        if not isinstance(shared, dict):
            return given
        own = {
            name: {**shared, **rules} if isinstance(rules, dict) else rules for name, rules in given["datasets"].items()
        }
        return {**given, "datasets": own}

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for kind, known in (("coordinators", self.coordinators), ("peers", self.peers)):
            keys = [each.public_key for each in known]
            twice = next((each.name for each in known if keys.count(each.public_key) > 1), None)
            if twice is not None:
                raise ValueError(f"{kind}: the public key of {twice!r} stands twice")
        names = [peer.name for peer in self.peers]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"peers: the name {twice!r} stands twice")
        return self

    @classmethod
    def load(cls, path: Path) -> "Policy":
        """Read and validate a policy; relative paths in it are taken from its folder.

        Raises:
            PolicyError: the file is missing or no TOML, a key is unknown, a value is out of range.
        """
        missing = f"policy {path} does not exist; `astrofed client policy {path} --new` writes a careful one to edit"
        return cls.parse(read_toml(path, PolicyError, PolicyError(missing), "policy "), path)

    @classmethod
    def parse(cls, data: dict[str, Any], source: Path) -> "Policy":
        """Return the policy that a file's content says (errors as `load`)."""
        policy = as_model(cls, data, PolicyError, f"policy {source}")
        folder = source.resolve().parent
        anchored = {
            name: rules.model_copy(update={"path": str(folder / rules.path)}) for name, rules in policy.datasets.items()
        }
        plugins = tuple(str(folder / each) if each.endswith(".py") else each for each in policy.plugins)
        found = policy.model_copy(update={"datasets": anchored, "plugins": plugins})
        found._source = source
        return found

    @property
    def source(self) -> str:
        """The file that it was read from, for messages."""
        return str(self._source) if self._source is not None else "the site's policy"

    def coordinator(self, public_key: bytes) -> Coordinator | None:
        """Return the coordinator with that Ed25519 key [32 bytes], or None if it is nobody's here."""
        key = public_key.hex()
        return next((each for each in self.coordinators if each.public_key == key), None)

    def rules(self, data: Path) -> DataRules:
        """Return the rules for the dataset at a path."""
        path = data.resolve()
        return next((each for each in self.datasets.values() if Path(each.path).resolve() == path), self.data)

    def allows(self, kind: Literal["modes", "tasks", "models"], name: str) -> bool:
        """Say whether a mode, task or model is on the policy's list; names match as in the plug-in registry."""
        allowed: Iterable[str] = getattr(self, kind)
        return normalise(name) in {normalise(each) for each in allowed}

    def allows_origin(self, origin: str) -> bool:
        """Say whether plug-ins from there (`Plugin.origin`: "package (…)" or a file) may be used."""
        package, files = origin.partition(" (")[0], [each for each in self.plugins if each.endswith(".py")]
        return package in self.plugins or Path(origin).resolve() in {Path(each).resolve() for each in files}


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _within(moment: time, span: str) -> bool:
    first, last = (time.fromisoformat(part) for part in span.split("-"))
    return first <= moment < last if first < last else moment >= first or moment < last
