"""From screened replies to the next model: gram -> mix -> reduce, with the rules that a plan names.

Weights of mixing stages multiply; the Gram matrix of mixed updates is W G W^T. The data are read at most twice, for the
Gram matrix and for the result (three times where updates lie close together, see `gram`). Beyond the replies memory is
O(n^2 + n * block).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astrofed.server.aggregation.base import (
    Combination,
    Coordinatewise,
    Floats,
    Mixing,
    TooFewReplies,
    squared_distances,
)
from astrofed.server.aggregation.gram import gram_matrix
from astrofed.server.aggregation.rules import largest_f
from astrofed.server.aggregation.updates import Arrays, Updates, flat, spans


@dataclass(frozen=True)
class Aggregate:
    """The next model and what became of each reply."""

    arrays: dict[str, NDArray[Any]]  # names, shapes, dtypes and order of the global model
    weights: Floats | None  # (n,), each reply's share of the new model; None for rules on single coordinates
    left_out: Mapping[int, str]  # replies without a share, by index, with a reason


@dataclass(frozen=True)
class Pipeline:
    """A rule with its pre-aggregators, for up to `f` lying participants."""

    name: str  # for people: "nnm + krum"
    pre: tuple[Mixing, ...]
    rule: Combination | Coordinatewise
    f: int

    def minimum_replies(self) -> int | None:
        """Return how many replies a round needs; None: no number is enough for this f."""
        needs = [stage.minimum_replies(self.f) for stage in (*self.pre, self.rule)]
        return None if None in needs else max(need for need in needs if need is not None)

    def largest_f(self, n: int) -> int | None:
        """Return the largest f that n replies allow; None: not even zero."""
        return largest_f((*self.pre, self.rule), n)

    def aggregate(self, reference: Arrays, replies: Sequence[Arrays], shares: Floats | None = None) -> Aggregate:
        """Return the next model from the global one and the replies to it.

        Float arrays go through the rule, in float64. Counters and flags take the replies' median, of two middle ones
        the lower, so that they are values that a reply holds.

        Args:
            reference: the global model.
            replies: the clients' models; the same names, shapes and dtypes, finite, at most float32's largest value.
            shares: (n,) the clients' weights before the rule, summing to 1; equal ones by default.

        Raises:
            TooFewReplies: fewer than `minimum_replies`.
        """
        n = len(replies)
        need = self.minimum_replies()
        if need is None or n < need:
            raise TooFewReplies(self._too_few(n, need))
        updates = Updates(reference, replies)
        if shares is None:
            shares = np.full(n, 1.0 / n)
        reads_gram = bool(self.pre) or (isinstance(self.rule, Combination) and self.rule.needs_gram)
        gram = gram_matrix(updates) if reads_gram else np.empty((0, 0))
        mixing = self._mix(gram, n)
        if isinstance(self.rule, Combination):
            mixed = mixing @ gram @ mixing.T if self.pre else gram
            if len(mixing) != n:
                shares = np.full(len(mixing), 1.0 / len(mixing))
            weights = self.rule.combine(mixed, shares, self.f) @ mixing
            arrays = _combine(updates, weights)
            left_out = _explain(self.name, gram, weights)
            return Aggregate(arrays, weights, left_out)
        return Aggregate(_reduce(updates, mixing if self.pre else None, self.rule, self.f), None, {})

    def _mix(self, gram: Floats, n: int) -> Floats:
        mixing = np.eye(n)
        for stage in self.pre:
            mixing = stage.mix(mixing @ gram @ mixing.T, self.f) @ mixing
        return mixing

    def _too_few(self, n: int, need: int | None) -> str:
        if need is None:
            return f"{self.name} withstands no lying participant, whatever the number of replies; f is {self.f}"
        return f"{n} usable replies; {self.name} needs {need} to withstand f = {self.f}"


def _combine(updates: Updates, weights: Floats) -> dict[str, NDArray[Any]]:
    clients = np.flatnonzero(weights).tolist()
    kept = weights[clients]
    result = _blank(updates)
    for block in updates.blocks(clients):
        _store(updates, result, block.name, block.columns, kept @ block.rows)
    return result


def _reduce(updates: Updates, mixing: Floats | None, rule: Coordinatewise, f: int) -> dict[str, NDArray[Any]]:
    result = _blank(updates)
    for block in updates.blocks(range(len(updates.replies))):
        rows = block.rows if mixing is None else mixing @ block.rows
        _store(updates, result, block.name, block.columns, rule.reduce(rows, f))
    return result


def _blank(updates: Updates) -> dict[str, NDArray[Any]]:
    """Return the new model with its counters and flags set, and room for its float arrays."""
    result = {name: np.empty(array.shape, array.dtype) for name, array in updates.reference.items()}
    middle = (len(updates.replies) - 1) // 2
    for name in updates.others:
        for columns in spans(result[name].size, 1 << 14):
            rows = np.stack([flat(reply[name], columns) for reply in updates.replies])
            result[name].reshape(-1)[columns] = np.sort(rows, axis=0)[middle]
    return result


def _store(updates: Updates, result: dict[str, NDArray[Any]], name: str, columns: slice, change: Floats) -> None:
    result[name].reshape(-1)[columns] = flat(updates.reference[name], columns) + change


def _explain(name: str, gram: Floats, weights: Floats) -> dict[int, str]:
    """Say of each reply without a share how far from the new model it lies, and the farthest of those that have one."""
    left = np.flatnonzero(weights == 0).tolist()
    if not left or not gram.size:
        return {}
    # The distance to a mean sum_j w_j x_j, from distances between updates: d_i = sum_j w_j D_ij - w^T D w / 2.
    squares = squared_distances(gram)
    far = np.sqrt(np.maximum(0.0, squares @ weights - weights @ squares @ weights / 2))
    most = far[weights != 0].max()
    return {i: f"{name} left it out: distance {far[i]:.3g} from the new model, largest kept {most:.3g}" for i in left}
