"""The plan's section for mode "evolution"."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from astrofed.shared.plan_base import Fraction, Section

Number = int | Annotated[float, Field(allow_inf_nan=False)]


class Bounds(Section):
    """The range of a key whose values evolve; two whole numbers mean that it takes whole numbers."""

    low: Number
    high: Number
    scale: Literal["log", "linear"] = "log"
    """On which scale changes are of one size everywhere."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low: must be below high (given: {self.low} and {self.high})")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low: a logarithmic scale begins above 0 (given: {self.low}); set scale = 'linear'")
        return self

    @property
    def whole(self) -> bool:
        """Whether the key takes whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class Evolution(Section):
    """Population-based training, for mode "evolution": weights and settings of the training evolve together.

    Jaderberg et al. (2017), "Population based training of neural networks", arXiv:1711.09846, section 3.
    """

    keys: Annotated[dict[str, Bounds], Field(min_length=1)]
    """The keys below `training` that evolve: {"training.learning_rate" = {low = 1e-3, high = 1e-1}}."""
    population: Annotated[int, Field(ge=2)] = 4
    """Members on each island."""
    generations: Annotated[int, Field(ge=1)] = 4
    rounds: Annotated[int, Field(ge=1)] = 1
    """Rounds that each member trains in a generation."""
    exploit: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """The share of an island's members, the worst, that take over weights and values of as many of the best, or of all
    others where those are fewer."""
    perturb: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Standard deviation of the change of a value that was taken over, as a share of its range on its scale."""
    decay: Fraction = 1.0
    """Factor on `perturb` by the last generation, reached step by step (1 keeps it): first far, then near."""
    resample: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Probability that such a value is drawn anew from its range instead."""
    islands: bool = True
    """Each training site is an island with members of its own; otherwise all sites train each member together."""
    migrate_every: Annotated[int, Field(ge=1)] = 2
    """Generations after which each island's best member also goes to the next island, in a ring."""
