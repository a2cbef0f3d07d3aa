"""Ten thousand spoilt replies, from four liars among seven honest in each round.

None raises, none is without an answer, and none moves the model farther than the rule's bound.
"""

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from astrofed.server.screening import screen_training
from astrofed.server.strategies.robust import RobustStrategy
from astrofed.shared.arrays import from_numpy, to_numpy
from astrofed.shared.npy import NPY

Rng = np.random.Generator
Model = dict[str, NDArray[Any]]
CASES, LIARS, HONEST = 10_000, 4, 7
MODEL: Model = {"w": np.ones((2, 3), np.float32), "b": np.zeros(3), "steps": np.array(4)}
NODES = list(range(10, 10 + LIARS + HONEST))
EXAMPLES = 50


def honest_model(rng: Rng) -> Model:
    return {k: np.asarray(a + 0.1 * rng.normal(size=a.shape), a.dtype) if k != "steps" else a for k, a in MODEL.items()}


def pick(rng: Rng, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def values(rng: Rng, model: Model) -> RecordDict:
    """Numbers that are no numbers, or as large as they get."""
    name = pick(rng, ["w", "b"])
    spoilt = np.array(model[name])
    extreme = [np.nan, np.inf, -np.inf, 3.4028235e38, -3.4028235e38, 1e20, -1e-45, 1e300 if name == "b" else 9e37]
    spoilt[rng.random(spoilt.shape) < rng.random()] = pick(rng, extreme)
    return content({**model, name: spoilt})


def dtypes(rng: Rng, model: Model) -> RecordDict:
    name, dtype = (
        pick(rng, list(model)),
        pick(rng, ["c8", "c16", "i1", "u8", "f2", "f4", "f8", ">f4", ">f8", "?", "S3", "M8[s]"]),
    )
    array = np.zeros(model[name].shape, dtype) if dtype in ("S3", "M8[s]") else model[name].astype(dtype)
    return content({**model, name: array})


def shapes(rng: Rng, model: Model) -> RecordDict:
    name = pick(rng, list(model))
    shape = tuple(rng.integers(0, 4, size=rng.integers(0, 5)).tolist())
    array = pick(rng, [np.zeros(shape, model[name].dtype), model[name].T, np.asfortranarray(model[name])])
    return content({**model, name: array})


def keys(rng: Rng, model: Model) -> RecordDict:
    changed = dict(model)
    kept = changed.pop(pick(rng, list(model)))
    if rng.random() < 0.7:
        changed[pick(rng, ["W", "", "w\x00", "w" * 500, "\u202ew", "extra", "w", "b"])] = kept
    return content(changed)


def bytes_of(rng: Rng, model: Model) -> RecordDict:
    """A buffer with bytes changed, cut off or added; the header says shape and type, so it is hit often."""
    record = from_numpy(model)
    name = pick(rng, list(model))
    data = bytearray(record[name].data)
    for _ in range(int(rng.integers(1, 12))):
        data[int(rng.integers(0, 128 if rng.random() < 0.6 else len(data)))] = int(rng.integers(256))
    cut = pick(rng, [data, data[: int(rng.integers(len(data)))], data + data, b"", rng.bytes(60)])
    record[name] = Array(pick(rng, ["float32", "object", "", "float99"]), (2, 3), pick(rng, [NPY, NPY, NPY, "raw"]),
                         bytes(cut))  # fmt: skip
    return RecordDict({"arrays": record, "metrics": metrics()})


def counts(rng: Rng, model: Model) -> RecordDict:
    odd = [0, -1, 51, 10**15, 2**63 - 1, -(2**63), 2**64, 0.5, np.nan, np.inf, [1, 2], [], [1.0], 1e308]
    record = MetricRecord({"loss": 0.1})
    for key in ("num-examples", "loss", "other", ""):
        if rng.random() < 0.5:
            value = pick(rng, odd)
            record[key] = [float(v) for v in value] if isinstance(value, list) else value
    return RecordDict({"arrays": from_numpy(model), "metrics": record})


def records(rng: Rng, model: Model) -> RecordDict:
    spare = pick(rng, [from_numpy(model), metrics(), ConfigRecord({"a": b"x"}), ArrayRecord(), MetricRecord()])
    whole = {"arrays": from_numpy(model), "metrics": metrics(), "spare": spare}
    return RecordDict({k: v for k, v in whole.items() if rng.random() < 0.7})


def content(model: Model) -> RecordDict:
    return RecordDict({"arrays": from_numpy(model), "metrics": metrics()})


def metrics() -> MetricRecord:
    return MetricRecord({"num-examples": EXAMPLES, "loss": 0.1})


SPOILERS: list[Callable[[Rng, Model], RecordDict]] = [values, dtypes, shapes, keys, bytes_of, counts, records]


def question(node: int, kind: str = "train") -> Message:
    message = Message(content=RecordDict(), dst_node_id=node, message_type=kind)
    message.metadata.__dict__["_message_id"] = f"question to {node}"
    return message


def spoilt_replies(rng: Rng, node: int, model: Model) -> list[Message]:
    way = rng.random()
    if way < 0.04:
        reason = pick(rng, ["", "\x1b[2J" * 100, "x" * 10_000, "𝔘\u200b\n"])
        return [Message(Error(int(rng.integers(0, 500)), reason), reply_to=question(node))]
    reply = Message(pick(rng, SPOILERS)(rng, model), reply_to=question(node))
    if way < 0.07:
        reply.metadata.__dict__["_reply_to_message_id"] = "question of last round"
    elif way < 0.1:
        return [reply, reply]
    elif way < 0.13:
        return []
    elif way < 0.16:
        return [Message(content(model), reply_to=question(node, "evaluate"))]
    return [reply]


@pytest.mark.parametrize(("rule", "pre"), [(None, ()), ("median", ("nnm",))])
def test_no_reply_however_spoilt_raises_or_breaks_the_bound(rule: str | None, pre: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    strategy = RobustStrategy(rule, pre, f=LIARS)
    list(strategy.configure_train(1, from_numpy(MODEL), ConfigRecord(), Mock(get_node_ids=lambda: NODES)))
    rejections = 0
    for _ in range(CASES // LIARS // 2):
        models = {node: honest_model(rng) for node in NODES}
        liars = set(rng.permutation(NODES)[:LIARS].tolist())
        replies = []
        for node, model in models.items():
            sound = [Message(content(model), reply_to=question(node))]
            replies += spoilt_replies(rng, node, model) if node in liars else sound
        questions = {node: f"question to {node}" for node in NODES}
        accepted, rejected = screen_training(replies, MODEL, dict.fromkeys(NODES, EXAMPLES), questions=questions)
        nodes = {message.metadata.src_node_id for message in accepted}
        refused = {item.node_id for item in rejected}
        assert nodes | refused == set(NODES) and not nodes & refused and refused <= liars
        assert all(item.reason and item.reason.isprintable() and len(item.reason) < 1000 for item in rejected)
        rejections += len(rejected)
        result, _ = strategy.aggregate_train(1, accepted)
        if result is None:
            assert len(accepted) < 9 and strategy.skipped
            continue
        new = to_numpy(result)
        assert new["steps"] == 4 or len(accepted) < HONEST + LIARS
        for name in ("w", "b"):
            sound_ones = np.stack([models[node][name] for node in NODES if node not in liars])
            reach = np.abs(sound_ones - sound_ones.mean(axis=0)).max() * sound_ones[0].size
            assert np.isfinite(new[name]).all() and np.abs(new[name] - sound_ones.mean(axis=0)).max() < 3 * reach
    assert rejections > CASES // 4, "the spoilers have lost their bite"
