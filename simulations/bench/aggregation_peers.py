"""The peers of `astrofed bench aggregation`, as calls on the same replies: our rules, Flower's strategies, ByzFL's.

What a peer needs made ready (messages that it empties, a matrix that it writes into) is made outside the time taken.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from astrofed.server.aggregation.gram import gram_matrix
from astrofed.server.aggregation.updates import Updates
from astrofed.simulations.bench.aggregation_work import MIXED, NAME, Case, Replies
from astrofed.simulations.bench.byzfl_peer import stages
from astrofed.simulations.bench.turns import Call

FLOWER, BYZFL_NUMPY, BYZFL_TORCH = "Flower", "ByzFL (numpy)", "ByzFL (torch)"


def through_arrays(case: Case, replies: Replies) -> Call:
    """Return our aggregation of the replies' arrays, as ByzFL's."""
    pipeline, arrays = case.pipeline(replies.n, replies.d), replies.arrays()
    return Call(lambda _: pipeline.aggregate(replies.model, arrays))


def through_messages(case: Case, replies: Replies) -> Call:
    """Return our strategy's aggregation of the replies' messages, as Flower's."""
    strategy = case.strategy(replies)
    return Call(lambda messages: strategy.aggregate_train(1, messages), replies.messages)


def flowers(case: Case, replies: Replies) -> Call | None:
    """Return the aggregation of the same messages by Flower's strategy of the same rule; None if it has none."""
    n, f = replies.n, case.f(replies.n)
    made: Mapping[str, Callable[[], Strategy]] = {
        "mean": flower.FedAvg,
        "median": flower.FedMedian,
        "trimmed-mean": lambda: flower.FedTrimmedAvg(beta=(f + 0.5) / n),  # it cuts int(beta n) at each end
        "krum": lambda: flower.Krum(num_malicious_nodes=f),
        "multi-krum": lambda: flower.MultiKrum(num_malicious_nodes=f, num_nodes_to_select=n - f),
        "bulyan": lambda: flower.Bulyan(num_malicious_nodes=f),
    }
    if case.pre or case.rule not in made:
        return None
    strategy = made[case.rule]()
    return Call(lambda messages: strategy.aggregate_train(1, messages), replies.messages)


def byzfls(case: Case, replies: Replies) -> dict[str, Call]:
    """Return ByzFL's aggregation of the same values as one matrix, by each backend; none where it has no such rule."""
    chain = stages(case.rule, case.pre, case.f(replies.n), case.options(replies.d))
    if chain is None:
        return {}
    matrix: list[Any] = []  # made when it is first needed, and filled again each time, as some stages write into it

    def ready() -> Any:
        if not matrix:
            matrix.append(np.empty((replies.n, replies.d), np.float32))
        for row, arrays in zip(matrix[0], replies.arrays(), strict=True):
            row[:] = arrays[NAME]
        return matrix[0]

    def run(vectors: Any) -> Any:
        for stage in chain:
            vectors = stage(vectors)
        return vectors

    return {BYZFL_NUMPY: Call(run, ready), BYZFL_TORCH: Call(run, lambda: torch.from_numpy(ready()))}


def likely_memory(case: Case, n: int) -> float:
    """Return what a peer may need beyond the replies, in multiples of their bytes, before it has been measured."""
    return n - case.f(n) + 1.0 if "nnm" in case.pre else 6.0  # ByzFL's mixing gathers all neighbours of all replies


def gram_pass(replies: Replies) -> Call:
    """Return the one pass over the data that distance-based rules need."""
    updates = Updates(replies.model, replies.arrays())
    return Call(lambda _: gram_matrix(updates))


def mixings(replies: Replies) -> dict[str, Call]:
    """Return what each pre-aggregator does before a rule sees it: the Gram matrix of its points, and the weights."""
    return {case.pre[0]: _mixing(case, replies) for case in MIXED}


def _mixing(case: Case, replies: Replies) -> Call:
    n, stage = replies.n, case.pipeline(replies.n, replies.d).pre[0]
    if not stage.about_model:
        updates = Updates(replies.model, replies.arrays())
        return Call(lambda _: stage.mix(gram_matrix(updates), case.f(n)))
    points = Updates(replies.model, [*replies.arrays(), replies.model])
    changes = np.eye(n, n + 1)
    changes[:, -1] = -1.0  # from the model, the last point
    return Call(lambda _: stage.mix(changes @ gram_matrix(points) @ changes.T, case.f(n)))
