"""The plan's sections for single modes: [meta], [customer] and [search]; [evolution] is in `plan_evolution`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from astrofed.shared.plan_base import Fraction, Name, Positive, Section, Value


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
    warm_rounds: Annotated[int, Field(ge=0)] = 0
    """Rounds, from the first, that train the shared weights by the task's plain loss, on as many samples a step as its
    episodes have (Jiang et al. 2019, arXiv:1909.12488); episodes begin from there."""
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
