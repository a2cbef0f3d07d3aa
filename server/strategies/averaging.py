"""Flower's averaging strategies, with the same sums to the bit, without what Flower takes for each array and message.

Flower reads every reply's arrays from the bytes of a file, copies each, and looks through all keys of all replies four
times. Screened replies have one form: here they are multiplied and added where they lie. What has another form, or a
metric function of its own, goes Flower's own way.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from numpy.typing import NDArray

from astrofed.shared import records
from astrofed.shared.array_forms import let_go, view
from astrofed.shared.arrays import Expected, from_numpy
from astrofed.shared.npy import MalformedArray

STACKED = 1 << 20  # bytes of arrays that are multiplied together; of larger ones a few
BLOCK = 1 << 16  # values of each large array that are added at a time
SPANNED = 32  # blocks after which memory that mirrors files is let go


class FedAvg(strategy.FedAvg):
    """Mean of the models, weighted by the numbers of examples (McMahan et al., 2017); Flower's, to the bit."""

    def _construct_messages(self, record: RecordDict, node_ids: list[int], message_type: str) -> Iterable[Message]:
        return records.messages(record, message_type, node_ids)

    def _check_and_log_replies(
        self, replies: Iterable[Message], is_train: bool, validate: bool = True
    ) -> tuple[list[Message], list[Message]]:
        replies = list(replies)
        if replies and _parts(replies, self.weighted_by_key, with_arrays=is_train) is not None:
            return replies, []
        found: tuple[list[Message], list[Message]] = super()._check_and_log_replies(replies, is_train, validate)
        return found

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the weighted means of the replies' arrays and metrics."""
        replies = list(replies)
        parts = _parts(replies, self.weighted_by_key, with_arrays=True)
        if not parts or self.train_metrics_aggr_fn is not aggregate_metricrecords:
            return cast(Any, super().aggregate_train(server_round, replies))  # type: ignore[no-any-return]
        numbers = [numbers for _, numbers in parts]
        counts = [entry[self.weighted_by_key] for entry in numbers]
        total = sum(counts)
        shares = [count / total for count in counts]
        try:
            arrays = {name: _sum([held[name] for held, _ in parts], shares, name) for name in parts[0][0]}
        except MalformedArray:
            return cast(Any, super().aggregate_train(server_round, replies))  # type: ignore[no-any-return]
        return from_numpy(arrays), _metrics(numbers, shares, self.weighted_by_key)


class FedProx(strategy.FedProx, FedAvg):
    """FedAvg whose participants stay near the global model (Li et al., 2020); Flower's."""


class FedAvgM(strategy.FedAvgM, FedAvg):
    """FedAvg with momentum on the server (Hsu et al., 2019); Flower's."""


class FedAdagrad(strategy.FedAdagrad, FedAvg):
    """FedAvg whose mean change is taken as a gradient by Adagrad (Reddi et al., 2021); Flower's."""


class FedAdam(strategy.FedAdam, FedAvg):
    """FedAvg whose mean change is taken as a gradient by Adam (Reddi et al., 2021); Flower's."""


class FedYogi(strategy.FedYogi, FedAvg):
    """FedAvg whose mean change is taken as a gradient by Yogi (Reddi et al., 2021); Flower's."""


Numbers = dict[str, int | float]


def _parts(
    replies: Sequence[Message], counted: str, *, with_arrays: bool
) -> list[tuple[dict[str, Array], Numbers]] | None:
    """Return each reply's arrays and numbers; None unless all have one record of each, with the same keys."""
    parts: list[tuple[dict[str, Array], Numbers]] = []
    for reply in replies:
        arrays, numbers = [], []
        for record in records.held(reply).values():
            if isinstance(record, MetricRecord):
                numbers.append(records.items(record))
            elif isinstance(record, ArrayRecord):
                arrays.append(records.items(record))
        if len(numbers) != 1 or (len(arrays) != 1 and with_arrays):
            return None
        parts.append((arrays[0] if with_arrays else {}, numbers[0]))
    names, keys = (part.keys() for part in parts[0]) if parts else ((), ())
    if any([held.keys() != names or told.keys() != keys for held, told in parts]) or counted not in keys:
        return None
    if any([isinstance(value, list) for _, told in parts for value in told.values()]):
        return None
    return parts


def _sum(arrays: Sequence[Array], shares: Sequence[float], name: str) -> NDArray[Any]:
    """Return sum_k s_k x_k, one after the other, each product rounded as numpy rounds an array times a number."""
    first = view(arrays[0], name)
    form = Expected.like(first)
    if not all([form.fits(array) for array in arrays]):
        total: NDArray[Any] = np.asarray(first * shares[0])
        for array, share in zip(arrays[1:], shares[1:], strict=True):
            total += view(array, name) * share
        return total
    size = max(1, STACKED // max(1, form.length))
    if size < 2:
        return _sum_of_large([form.flat(array) for array in arrays], shares).reshape(form.shape)
    total = np.asarray(first * shares[0])
    flat = total.reshape(-1)
    if flat.size < 2:  # numpy adds a single column in another order
        for array, share in zip(arrays[1:], shares[1:], strict=True):
            flat += form.flat(array) * share
        return total
    factors = np.asarray(shares, flat.dtype)[:, None]
    for start in range(1, len(arrays), size):
        products = form.stacked(arrays[start : start + size]) * factors[start : start + size]
        products[0] += flat
        np.add.reduce(products, axis=0, out=flat)
    return total


def _sum_of_large(rows: Sequence[NDArray[Any]], shares: Sequence[float]) -> NDArray[Any]:
    """Return the sum of rows (values,) that may lie in files: block by block, so that little of them is in memory."""
    dtype = (rows[0][:0] * shares[0]).dtype
    total: NDArray[Any] = np.empty(rows[0].size, dtype)
    room = np.empty(min(BLOCK, total.size), dtype)
    for start in range(0, total.size, BLOCK):
        block = total[start : start + BLOCK]
        np.multiply(rows[0][start : start + BLOCK], shares[0], out=block)
        for row, share in zip(rows[1:], shares[1:], strict=True):
            block += np.multiply(row[start : start + BLOCK], share, out=room[: block.size])
        if start % (SPANNED * BLOCK) == 0:
            for row in rows:
                let_go(row)
    return total


def _metrics(numbers: Sequence[Numbers], shares: Sequence[float], counted: str) -> MetricRecord:
    means: Numbers = {}
    for key in numbers[0]:
        if key != counted:
            mean = numbers[0][key] * shares[0]
            for told, share in zip(numbers[1:], shares[1:], strict=True):
                mean += told[key] * share
            means[key] = mean
    return records.metrics(means)
