"""From screened replies to the next model: gram -> mix -> reduce, with the rules that a plan names.

Weights of mixing stages multiply; the Gram matrix of mixed updates is W G W^T. Where lengths matter, the global model
is one more point, with an update of zero, so that weights sum to 1 all the same. The data are read at most twice, for
the Gram matrix and for the result. Beyond the replies memory is O(n^2 + n * block).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Optional

import numpy as np
from numpy.typing import NDArray

from astrofed.server.aggregation.base import (
    Combination,
    Coordinatewise,
    Floats,
    Mixing,
    Rule,
    TooFewReplies,
    distances_to,
    largest_f,
    minimum_replies,
    squared_distances,
)
from astrofed.server.aggregation.gram import gram_about, most_central, squares_between
from astrofed.server.aggregation.updates import Arrays, Updates, flat, spans

if TYPE_CHECKING:
    from astrofed.server.aggregation.passes_torch import TorchPasses

LONGEST = 1e30  # beyond such a distance mixes of updates are kept in float64


@dataclass(frozen=True)
class Aggregate:
    """The next model and what became of each reply."""

    arrays: dict[str, NDArray[Any]]  # names, shapes, dtypes and order of the global model; may be views of a reply
    weights: Floats | None  # (n,), each reply's share of the new model; None for rules on single coordinates
    left_out: Mapping[int, str]  # replies without a share, by index, with a reason


@dataclass(frozen=True)
class Pipeline:
    """A rule with its pre-aggregators, for up to `f` lying participants."""

    name: str  # for people: "nnm + krum"
    pre: tuple[Mixing, ...]
    rule: Combination | Coordinatewise
    f: int
    device: Optional["TorchPasses"] = None  # where the data are read; by default by compiled code on the CPU

    def minimum_replies(self) -> int | None:
        """Return how many replies a round needs; None: no number is enough for this f."""
        return minimum_replies((*self.pre, self.rule), self.f)

    @property
    def limit(self) -> str:
        """Why no number of replies is enough, where `minimum_replies` returns None."""
        stages = (*self.pre, self.rule)
        return next((stage.limit for stage in stages if stage.minimum_replies(self.f) is None), "")

    def largest_f(self, n: int) -> int | None:
        """Return the largest f that n replies allow; None: not even zero."""
        return largest_f((*self.pre, self.rule), n)

    def seeded(self, seed: int) -> "Pipeline":
        """Return the pipeline with the seed of a round, for stages that draw at random."""
        return replace(self, pre=tuple(stage.seeded(seed) for stage in self.pre), rule=self.rule.seeded(seed))

    def aggregate(
        self,
        reference: Arrays,
        replies: Sequence[Arrays],
        shares: Floats | None = None,
        onward: Arrays | None = None,
    ) -> Aggregate:
        """Return the next model from the global one and the replies to it.

        Float arrays go through the rule, in float64. Counters and flags take the replies' median, of two middle ones
        the lower, so that they are values that a reply holds.

        Args:
            reference: the global model.
            replies: the clients' models; the same names, shapes and dtypes, finite, at most float32's largest value.
            shares: (n,) the clients' weights before the rule, summing to 1; equal ones by default.
            onward: the global model moved on by its last step once more, for rules that start from there; by default
                the global model, as in the first round.

        Raises:
            TooFewReplies: fewer than `minimum_replies`.
        """
        n = len(replies)
        need = self.minimum_replies()
        if need is None or n < need:
            raise TooFewReplies(self._too_few(n, need))
        if shares is None:
            shares = np.full(n, 1.0 / n)
        stages = (*self.pre, self.rule)
        about_model = any(stage.about_model for stage in stages)
        start = self.rule.start if isinstance(self.rule, Combination) else None
        points = [*replies]
        if start is not None:
            points.append(onward if onward is not None and start == "last-step" else reference)
        if about_model:
            points.append(reference)
        updates = Updates(reference, points)
        reads_gram = bool(self.pre) or about_model or (isinstance(self.rule, Combination) and self.rule.needs_gram)
        gram = from_model = np.empty((0, 0))
        if reads_gram:
            squares = squares_between(updates, self.device)
            gram, from_model = gram_about(squares), gram_about(squares, -1) if about_model else from_model
        rows = np.eye(n, len(points))
        for stage in self.pre:
            rows = _apply(stage, stage.mix(_seen(stage, rows, gram, from_model), self.f), rows)
        if isinstance(self.rule, Combination):
            if len(rows) != n:
                shares = np.full(len(rows), 1.0 / len(rows))
            if start is not None:
                rows = np.vstack([rows, np.eye(1, len(points), n)])
            weights = self.rule.combine(_seen(self.rule, rows, gram, from_model), shares, self.f)
            weights = _apply(self.rule, weights[None], rows)[0]
            return Aggregate(self._combine(updates, weights, n), weights[:n], _explain(self.name, gram, weights, n))
        left_out = {int(i): f"{self.name} did not select it" for i in np.flatnonzero(~rows[:, :n].any(axis=0))}
        mixing = rows if self.pre else None
        return Aggregate(self._reduce(updates, mixing, self.rule, n, gram), None, left_out)

    def _combine(self, updates: Updates, weights: Floats, n: int) -> dict[str, NDArray[Any]]:
        """Return the weighted mean of the points; the first n of them are replies. One alone is itself, not a copy."""
        clients = np.flatnonzero(weights).tolist()
        result = _blank(updates, n)
        if len(clients) == 1:
            return result | {name: updates.replies[clients[0]][name] for name in updates.floats}
        self._passes.weighted_mean(updates, clients, weights[clients], result)
        return result

    def _reduce(
        self, updates: Updates, mixing: Floats | None, rule: Coordinatewise, n: int, gram: Floats
    ) -> dict[str, NDArray[Any]]:
        """Return the rule's value at each coordinate, of the n replies or of mixes (m, points) of all points.

        Mixes that the model has a part in, the last point, are measured from it; others from the most central reply.
        """
        result = _blank(updates, n)
        clients = list(range(n))
        if mixing is not None:
            clients = np.flatnonzero(mixing.any(axis=0)).tolist()
            mixing = mixing[:, clients]
            if (np.count_nonzero(mixing, axis=1) == 1).all():  # a selection
                clients, mixing = [clients[place] for place in mixing.argmax(axis=1)], None
        reduction = rule.reduction(len(clients) if mixing is None else len(mixing), self.f)
        if reduction is not None:
            centre, wide = -1, False
            if mixing is not None:
                seen = gram[np.ix_(clients, clients)]
                centre = len(clients) - 1 if clients[-1] >= n else most_central(seen)
                wide = bool(np.sqrt(squared_distances(seen)[centre].max()) > LONGEST)
            self._passes.order_statistic(updates, clients, reduction, result, mixing, centre, wide=wide)
            return result
        for block in updates.blocks(clients):
            rows = block.rows if mixing is None else mixing @ block.rows
            change = rule.reduce(rows, self.f)
            result[block.name].reshape(-1)[block.columns] = flat(updates.reference[block.name], block.columns) + change
        return result

    @property
    def _passes(self) -> Any:
        """What reads the data: `passes` or its twin on another device. Importing `passes` takes numba's time."""
        if self.device is not None:
            return self.device
        from astrofed.server.aggregation import passes

        return passes

    def _too_few(self, n: int, need: int | None) -> str:
        if need is None:
            return f"{self.name} {self.limit}, whatever the number of replies; f is {self.f}"
        return f"{n} usable replies; {self.name} needs {need} to withstand f = {self.f}"


def _seen(stage: Rule, rows: Floats, gram: Floats, from_model: Floats) -> Floats:
    """Return the Gram matrix of mixed updates as the stage asks for it; the model, if there, is the last point.

    Lengths are taken about the model: the most central update may be a liar's, and the others' lengths be lost in its.
    """
    if not gram.size:
        return gram
    return rows @ (from_model if stage.about_model else gram) @ rows.T


def _apply(stage: Rule, weights: Floats, rows: Floats) -> Floats:
    """Return a stage's weights as weights of the points; what is missing to 1 is the model's share."""
    mixed = weights @ rows
    if stage.about_model:
        mixed[:, -1] += 1.0 - weights.sum(axis=1)
    return mixed


def _blank(updates: Updates, n: int) -> dict[str, NDArray[Any]]:
    """Return the new model with its counters and flags set by the n replies, and room for its float arrays."""
    result = {name: np.empty(array.shape, array.dtype) for name, array in updates.reference.items()}
    middle = (n - 1) // 2
    for name in updates.others:
        for columns in spans(result[name].size, 1 << 14):
            rows = np.stack([flat(reply[name], columns) for reply in updates.replies[:n]])
            result[name].reshape(-1)[columns] = np.sort(rows, axis=0)[middle]
    return result


def _explain(name: str, gram: Floats, weights: Floats, n: int) -> dict[int, str]:
    """Say of each of n replies without a share how far from the new model it lies, and the farthest that has one."""
    left = np.flatnonzero(weights[:n] == 0).tolist()
    if not left or not gram.size:
        return {}
    far = distances_to(gram, weights)[:n]
    kept = f"largest kept {far[weights[:n] != 0].max():.3g}" if len(left) < n else "none kept"
    return {i: f"{name} left it out: distance {far[i]:.3g} from the new model, {kept}" for i in left}
