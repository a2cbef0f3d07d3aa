"""The stages of robust aggregation that plug-ins fill: mixing, combining, and reducing one coordinate at a time.

Updates travel as screen -> gram -> mix -> reduce. A rule never sees the updates whole: a `Mixing` or a `Combination`
turns their Gram matrix into weights, a `Coordinatewise` rule turns a block of coordinates into one value each.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from astrofed.shared.errors import AstrofedError
from astrofed.shared.plan import Section

Floats = NDArray[np.float64]


class TooFewReplies(AstrofedError):
    """A rule was given fewer replies than its guarantee needs."""


@dataclass(frozen=True)
class MeanOfRanks:
    """Of each coordinate's sorted values x_(0) … x_(n-1), the mean of those from `first` to before `stop`."""

    first: int
    stop: int


@dataclass(frozen=True)
class MeanAroundMedian:
    """The mean of the `keep` values of each coordinate that lie nearest to its median; of equally near, the smaller."""

    keep: int


class Rule(ABC):
    """A stage of aggregation that a plan names as `rule` or in `pre`; derive from one of the three kinds below.

    A rule is a pure function of its inputs: the same replies in another order give the same model, up to ties, which go
    to the reply that comes first.
    """

    about_model: ClassVar[bool] = False
    """Whether the length of an update has a meaning. Then the Gram matrix that the stage is given is about the global
    model, and its weights may sum to less or more than 1: what they multiply are changes of the global model."""
    limit: ClassVar[str] = "withstands no lying participant"
    """Why `minimum_replies` returns None, where it does."""

    class Options(Section):
        """The rule's own keys in the plan's [strategy] section."""

    def __init__(self, options: Section) -> None:
        """Keep the options, an instance of this class's `Options`."""
        self.options = options

    @abstractmethod
    def minimum_replies(self, f: int) -> int | None:
        """Return how many replies, liars included, the rule needs to withstand `f` liars; None: no number is enough."""

    def before(self) -> tuple["Mixing", ...]:
        """Return the stages that belong to the rule itself and come right before it."""
        return ()

    def seeded(self, seed: int) -> Self:
        """Return the rule with the seed of a round, for rules that draw at random."""
        return self


class Mixing(Rule):
    """A pre-aggregator: replaces the updates by as many or fewer weighted means of them."""

    pools: ClassVar[bool] = False
    """Whether it averages over participants, which brings them closer together where their data differ."""

    def needed_for(self, mixed: int, f: int) -> int:
        """Return how many updates it takes to leave at least `mixed` of them; as many, unless it merges some."""
        return mixed

    @abstractmethod
    def mix(self, gram: Floats, f: int) -> Floats:
        """Return weights of shape (mixed, n), rows summing to 1, for the updates whose Gram matrix is `gram` (n, n).

        Unless `about_model`, the Gram matrix may be that of the updates' differences from any one point, so only
        distances have a meaning.
        """


class Combination(Rule):
    """A rule whose result is one weighted mean of the updates."""

    needs_gram: ClassVar[bool] = True
    """Whether `combine` reads the Gram matrix; without it one pass over the data is saved."""
    weighs_examples: ClassVar[bool] = False
    """Whether shares other than equal ones have a meaning for this rule."""
    trusts_one: ClassVar[bool] = False
    """Whether the rule measures the others by one trusted participant, whose share is then 1 and the others' 0."""
    start: Literal["model", "last-step"] | None = None
    """Where the rule starts from, if anywhere: the global model, or the step that it took the round before.

    The last row and column of `gram` are then the start's, and so is the last weight returned.
    """

    @abstractmethod
    def combine(self, gram: Floats, shares: Floats, f: int) -> Floats:
        """Return weights (n,), summing to 1; `shares` (n,) are the clients' weights before the rule, summing to 1.

        For `gram` see `Mixing.mix`; it is (0, 0) where `needs_gram` is false.
        """


class Coordinatewise(Rule):
    """A rule that works on each coordinate by itself."""

    def reduction(self, n: int, f: int) -> MeanOfRanks | MeanAroundMedian | None:
        """Return what the rule does to n values, if it is one of these: compiled code then does it, not `reduce`."""
        return None

    @abstractmethod
    def reduce(self, rows: Floats, f: int) -> Floats:
        """Return one value (columns,) for each column of `rows` (n, columns); `rows` may be overwritten."""


def minimum_replies(stages: Sequence[Rule], f: int) -> int | None:
    """Return how many replies a chain of stages, the rule last, needs to withstand f liars; None: no number will do."""
    need = 1
    for stage in reversed(stages):
        own = stage.minimum_replies(f)
        if own is None:
            return None
        need = max(own, stage.needed_for(need, f) if isinstance(stage, Mixing) else need)
    return need


def largest_f(stages: Sequence[Rule], n: int) -> int | None:
    """Return the largest number of liars that all stages withstand among n replies; None: not even zero."""
    found = None
    for f in range(n):
        need = minimum_replies(stages, f)
        if need is None or need > n:
            break
        found = f
    return found


def squared_distances(gram: Floats) -> Floats:
    """Return the squared Euclidean distances (n, n) between updates from their Gram matrix (n, n).

    Distances below the rounding of the Gram matrix are zero, so that equal updates stay equal.
    """
    norms = np.diag(gram)
    sums = norms[:, None] + norms[None, :]
    distances = sums - 2 * gram
    distances[distances <= 16 * np.finfo(np.float64).eps * sums] = 0.0
    return (distances + distances.T) / 2


def distances_to(gram: Floats, weights: Floats) -> Floats:
    """Return the distances (n,) of updates to their mean v = sum_j a_j x_j with weights a (n,) that sum to 1.

    ||x_i - v||^2 = G_ii - 2 (G a)_i + a.G a about any one point; small weights of updates far away cost no digits.
    """
    pull = gram @ weights
    return np.asarray(np.sqrt(np.maximum(0.0, np.diag(gram) - 2 * pull + weights @ pull)))
