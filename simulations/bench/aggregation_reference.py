"""What each rule should give, in plain numpy and float64: the measure of how far fast results deviate.

Written from the papers that `server/aggregation/rules_*.py` cite, not from that code. Everything is about the global
model: updates u_i = x_i - model, one matrix of weights (m, n) that mixes them, and a reduction of the m mixed ones.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Values = NDArray[np.float32]
CHUNK = 1 << 14  # columns taken at once
COMPARED = 16  # chunks that are compared, spread evenly from the first to the last


def update_gram(model: Values, replies: Sequence[Values]) -> Floats:
    """Return the inner products (n, n) of the updates, over all columns."""
    gram = np.zeros((len(replies), len(replies)))
    for start in range(0, len(model), CHUNK):
        updates = _updates(model, replies, slice(start, start + CHUNK))
        gram += updates @ updates.T
    return gram


def largest_deviation(
    result: Values, model: Values, replies: Sequence[Values], mixing: Floats, rule: str, f: int, spread: float
) -> float:
    """Return max |result - reference| / max(|reference|, spread) over the columns compared.

    Args:
        result: (d,) the new model.
        model: (d,) the global model.
        replies: n arrays (d,).
        mixing: from `expected_weights`.
        rule: whose reduction follows.
        f: how many liars it withstands.
        spread: standard deviation of the updates: values near zero are measured by it.
    """
    worst = 0.0
    for columns in _compared(len(model)):
        expected = model[columns] + _reduced(mixing @ _updates(model, replies, columns), rule, f)
        deviation = np.abs(result[columns] - expected) / np.maximum(np.abs(expected), spread)
        worst = max(worst, float(deviation.max()))
    return worst


def expected_weights(gram: Floats, pre: Sequence[str], rule: str, f: int, clip_norm: float = 0.0) -> Floats:
    """Return the weights (m, n) with which the updates enter the rule's reduction; one row where it is a mean."""
    mixing = np.eye(len(gram))
    for stage in pre:
        mixing = _mixing(stage, mixing @ gram @ mixing.T, f, clip_norm) @ mixing
    seen = mixing @ gram @ mixing.T
    n = len(seen)
    if rule == "mean":
        return np.asarray(mixing.mean(axis=0, keepdims=True))
    if rule in ("krum", "multi-krum"):
        kept = np.argsort(_krum_scores(_squares(seen), f))[: 1 if rule == "krum" else n - f]
        return np.asarray(mixing[kept].mean(axis=0, keepdims=True))
    if rule == "geometric-median":
        return np.asarray(_weiszfeld(seen)[None] @ mixing)
    if rule == "bulyan":
        return np.asarray(mixing[_selected(_squares(seen), f)])
    return mixing


def _reduced(rows: Floats, rule: str, f: int) -> Floats:
    """Return the rule's value of each column of the mixed updates."""
    if rule == "median":
        return np.asarray(np.median(rows, axis=0))
    if rule == "trimmed-mean":
        return np.asarray(np.sort(rows, axis=0)[f : len(rows) - f].mean(axis=0))
    if rule == "bulyan":
        ranked = np.sort(rows, axis=0)  # so that of two equally near the smaller comes first
        order = np.argsort(np.abs(ranked - np.median(rows, axis=0)), axis=0, kind="stable")[: len(rows) - 2 * f]
        return np.asarray(np.take_along_axis(ranked, order, axis=0).mean(axis=0))
    return np.asarray(rows[0])


def _mixing(stage: str, gram: Floats, f: int, clip_norm: float) -> Floats:
    n = len(gram)
    lengths = np.sqrt(np.diag(gram))
    if stage == "nnm":
        nearest = np.argsort(_squares(gram), axis=1)[:, : n - f]
        return np.asarray([[(j in row) / (n - f) for j in range(n)] for row in nearest])
    if stage == "bucketing":
        order = np.random.default_rng(0).permutation(n)  # the order that the pipeline draws without a seed of a round
        buckets = [order[start : start + 2] for start in range(0, n, 2)]
        return np.asarray([[(j in bucket) / len(bucket) for j in range(n)] for bucket in buckets])
    if stage == "clip":
        return np.diag(np.minimum(1.0, clip_norm / lengths))
    if stage == "arc":
        shortened = int(2 * f * (n - f) / n)
        return np.diag(np.minimum(1.0, np.sort(lengths)[n - 1 - shortened] / lengths))
    raise ValueError(f"no reference for {stage!r}")


def _krum_scores(squares: Floats, f: int) -> Floats:
    """Return the sums of squared distances to the n - f - 2 nearest others, one at least."""
    nearest = np.sort(squares, axis=1)[:, 1:]  # without the distance to itself
    return np.asarray(nearest[:, : max(1, len(squares) - f - 2)].sum(axis=1))


def _selected(squares: Floats, f: int) -> list[int]:
    """Return Bulyan's selection: the best by Krum of those that remain, n - 2f times; ties go to the more central."""
    remaining = list(range(len(squares)))
    chosen: list[int] = []
    while len(chosen) < len(squares) - 2 * f:
        among = squares[np.ix_(remaining, remaining)]
        scores = _krum_scores(among, f)
        best = min(range(len(remaining)), key=lambda i: (scores[i], among[i].sum()))
        chosen.append(remaining.pop(best))
    return chosen


def _weiszfeld(gram: Floats) -> Floats:
    """Return the weights of the geometric median, by Weiszfeld's iteration until it stands still."""
    weights = np.full(len(gram), 1 / len(gram))
    for _ in range(10_000):
        pull = gram @ weights
        far = np.sqrt(np.maximum(0.0, np.diag(gram) - 2 * pull + weights @ pull))
        inverse = 1 / np.maximum(far, 1e-12 * far.max())  # it may be one of the updates itself
        before, weights = weights, inverse / inverse.sum()
        if np.abs(weights - before).max() < 1e-15:
            break
    return weights


def _squares(gram: Floats) -> Floats:
    norms = np.diag(gram)
    squares = np.maximum(0.0, norms[:, None] + norms - 2 * gram)
    np.fill_diagonal(squares, 0.0)
    return squares


def _updates(model: Values, replies: Sequence[Values], columns: slice) -> Floats:
    return np.stack([reply[columns].astype(np.float64) for reply in replies]) - model[columns].astype(np.float64)


def _compared(d: int) -> Iterator[slice]:
    last = max(0, d - CHUNK)
    for start in sorted({round(last * part / (COMPARED - 1)) for part in range(COMPARED)}):
        yield slice(start, min(d, start + CHUNK))
