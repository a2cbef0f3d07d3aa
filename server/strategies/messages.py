"""What our strategies send, and the means of the metrics that come back."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from astrofed.server.aggregation.base import Floats
from astrofed.shared import records

COUNT = "num-examples"


def messages_to(
    nodes: Iterable[int], kind: str, server_round: int, arrays: ArrayRecord, config: ConfigRecord
) -> list[Message]:
    """Return a message of a kind for each node, all with the same record."""
    config["server-round"] = server_round
    return records.messages(RecordDict({"arrays": arrays, "config": config}), kind, nodes)


def scalars(record: MetricRecord) -> dict[str, float]:
    """Return a record's single numbers."""
    return {key: float(value) for key, value in record.items() if isinstance(value, int | float)}


def mean_metrics(metrics: Sequence[Mapping[str, float]], weights: Floats | None) -> MetricRecord:
    """Return the weighted mean of the metrics that all have, without the counts."""
    if weights is None or not weights.sum() > 0:
        weights = np.ones(len(metrics))
    shares = weights / weights.sum()
    keys = [key for key in metrics[0] if key != COUNT and all(key in entry for entry in metrics)]
    pairs = [(share, entry) for share, entry in zip(shares.tolist(), metrics, strict=True) if share]
    return MetricRecord({key: sum(share * entry[key] for share, entry in pairs) for key in keys})
