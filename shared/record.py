"""The run record: what `rounds.jsonl` holds, one JSON object a line, each line chained to the one before by SHA-256.

Line 0 of a run is its `Start`; then one `Round` for each round that is complete, round 0 being the evaluation of the
initial model. Participants are named as in the plan. The resolved plan lies beside it in `plan.toml`.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Enrolled(_Line):
    """A participant that answered the call to enrol: counts and a fingerprint, never data."""

    participant: str
    role: Literal["train", "evaluate"]
    num_examples: int
    num_eval_examples: int
    num_units: int
    unit: str
    fingerprint: str
    description: str
    noise_pairs: tuple[str, ...] = ()
    """Of each participant that noise is shared with: its name, "=", and what both must say alike."""


class Quarantine(_Line):
    """A reply, or a whole participant, that was kept out, and why."""

    participant: str
    reason: str


class Spent(_Line):
    """What one participant has spent of its privacy budget so far: (epsilon, delta)-DP for each `unit` of its data."""

    participant: str
    dataset: str
    unit: str
    epsilon: float
    delta: float


class CentralSpent(_Line):
    """What the models released so far have cost each participant as a whole: (epsilon, delta)-DP at the server."""

    epsilon: float
    delta: float
    noise_multiplier: float  # of this round: standard deviation of the noise on the sum of updates, in clipping norms
    clipping_norm: float  # of this round
    charges: int  # lines of central_privacy.jsonl that epsilon was composed of
    charges_sha256: str  # of the last of them


class Start(_Line):
    """The first line: who takes part, with which software, on which engine."""

    kind: Literal["start"] = "start"
    previous: str  # sha256 of plan.toml
    time: str  # ISO 8601, UTC
    versions: dict[str, str]
    engine: str
    parameters: int  # of the model
    initial_sha256: str | None = None  # of the weights that the run began with as a file; None: drawn from the seed
    enrolled: tuple[Enrolled, ...]
    refused: tuple[Quarantine, ...]


class Round(_Line):
    """One complete round."""

    kind: Literal["round"] = "round"
    previous: str  # sha256 of the line before, without its line break
    round: int  # 0: the initial model, only evaluated
    skipped: str | None = None  # why the model was left as it was
    notes: tuple[str, ...] = ()  # what else the strategy found out of the ordinary: f lowered, a momentum not renewed
    joined: tuple[Enrolled, ...] = ()  # participants that enrolled before this round, where membership is open
    accepted: tuple[str, ...] = ()
    weights: dict[str, float] = {}  # weight of each accepted update in the new model, where the rule has weights
    quarantined: tuple[Quarantine, ...] = ()
    train_metrics: dict[str, float] = {}  # mean over the accepted
    loss: float | None = None  # headline metric over the training sites' held-out data; None: not evaluated this round
    metrics: dict[str, float] = {}  # mean over the training sites' held-out data; round 0 also "baseline/…"
    unseen: dict[str, float] = {}  # mean over participants with role "evaluate"; round 0 also "baseline/…"
    sites: dict[str, dict[str, float]] = {}  # each participant's own evaluation
    privacy: tuple[Spent, ...] = ()
    central_privacy: CentralSpent | None = None  # with it, who took part stands in the operator's file alone
    seconds: float | None  # None: would tell how many took part
    bytes: int | None  # of arrays sent and received; None: would tell how many took part
    checkpoint: str  # file in checkpoints/; all but the newest two are deleted as the run goes on
    checkpoint_sha256: str
