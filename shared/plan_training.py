"""The plan's sections on training: what a participant does in a round, and what physics asks of its predictions."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from astrofed.shared.plan_base import Positive, Section


class Training(Section):
    """What one participant does in one round."""

    epochs: Annotated[int, Field(ge=1)] = 1
    max_steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Samples whose mean loss a gradient is of; a site whose memory can't hold them takes them in pieces by itself."""
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

    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    balance: Literal["fixed", "gradient"] = "fixed"
    """Whether a weight multiplies its residual's penalty as it is, or scaled so that the penalty's gradient by the
    prediction is as long as the error's."""
    fixers: tuple[Literal["mass", "hydrostatic", "radiation", "energy", "water"], ...] = ()
    """What is corrected in every prediction, in training too, so that a constraint holds."""
