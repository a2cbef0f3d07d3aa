"""The plan's sections on differential privacy: at each participant, and at the server."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from astrofed.shared.plan_base import Fraction, Positive, Section
from astrofed.shared.plan_training import Training


class SharedNoise(Section):
    """Noise that the training participants share, so that their mean carries no more than one holder of all data needs.

    For strategy "robust" with rule "mean", one step a round, and `noise_multiplier`, which is that of the whole.
    """

    colluding: Annotated[int, Field(ge=0)]
    """So many participants may tell all that they know, or add no noise; with 0 epsilon holds against none of them."""


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
    shared_noise: SharedNoise | None = None
    unit: str

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of epsilon and noise_multiplier")
        if self.clipping != "adaptive" and self.clipping_quantile != 0.5:
            raise ValueError("clipping_quantile is for clipping = 'adaptive'; set that, or leave the quantile out")
        if self.shared_noise is not None and (self.noise_multiplier is None or self.clipping == "adaptive"):
            raise ValueError(
                "shared_noise counts on the same noise at every site: give noise_multiplier in place of epsilon, and "
                "no adaptive clipping (`astrofed client check` says which epsilon a site comes to)"
            )
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


def not_with_shared_noise(shared: SharedNoise, training: Training, trainers: int) -> str | None:
    """Say why so many participants that train so can't share noise; None where they can."""
    if trainers < 2:
        return "privacy.shared_noise: one training participant has nobody to share noise with; remove it"
    if shared.colluding > trainers - 2:
        return (
            f"privacy.shared_noise.colluding: {shared.colluding} would leave a participant alone with its noise; at "
            f"most {trainers - 2} of {trainers} may collude"
        )
    if training.max_steps != 1:
        return (
            "privacy.shared_noise: sites' steps must add up to one step of all of them: set training.max_steps = 1, "
            "and give as many rounds as there are to be steps"
        )
    if training.optimizer != "sgd":
        return (
            f"privacy.shared_noise: optimizer {training.optimizer!r} does not just scale a gradient, so the noise of "
            "two sites would not cancel; set training.optimizer = 'sgd'"
        )
    return None


def not_with_privacy(training: Training) -> str | None:
    """Say which key of [training] has no place beside [privacy], and why; None where all have."""
    reasons = {
        "precision": (training.precision != "fp32", "gradients are clipped and noised in single precision"),
        "checkpoint": (training.checkpoint, "per-unit gradients are taken of a function, not of a backward pass"),
        "accumulate": (training.accumulate > 1, "a step is one Poisson sample; privacy.micro_batch bounds the memory"),
        "gradient_clip": (training.gradient_clip is not None, "privacy.clipping_norm clips each unit's gradient"),
        "optimizer": (
            training.optimizer in ("sophia", "muon"),
            "sophia's curvature would be released without noise, and muon regroups the weights that noise is for",
        ),
    }
    for key, (mistaken, reason) in reasons.items():
        if mistaken:
            return f"training.{key} = {getattr(training, key)!r} has no place beside [privacy]: {reason}; leave it out"
    return None
