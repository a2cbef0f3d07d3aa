"""Our averaging strategies give Flower's sums to the bit, whatever the arrays, and leave odd replies to Flower."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flowers
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from astrofed.server.nodes import GridView
from astrofed.server.strategies import averaging
from astrofed.shared import registry
from astrofed.shared.arrays import from_numpy

NAMES = ["FedAvg", "FedProx", "FedAvgM", "FedAdagrad", "FedAdam", "FedYogi"]
OPTIONS: dict[str, dict[str, Any]] = {
    "FedProx": {"proximal_mu": 0.1},
    "FedAvgM": {"server_learning_rate": 0.5, "server_momentum": 0.9},
}
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
Make = Callable[[dict[str, NDArray[Any]]], ArrayRecord]


def replies(models: list[dict[str, NDArray[Any]]], counts: list[float], make: Make = from_numpy) -> list[Message]:
    made = []
    for node, (model, count) in enumerate(zip(models, counts, strict=True), start=2):
        metrics = MetricRecord({"loss": 0.1 * node, "num-examples": count, "steps": node})
        order = Message(RecordDict(), dst_node_id=node, message_type="train")
        made.append(Message(RecordDict({"arrays": make(model), "metrics": metrics}), reply_to=order))
    return made


def flower_record(model: dict[str, NDArray[Any]]) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in model.items()})


def as_bytes(record: ArrayRecord | None) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    assert record is not None
    return {name: (array.dtype, tuple(array.shape), array.data) for name, array in record.items()}


def models(rng: np.random.Generator, count: int, *, spread: float = 3.0) -> list[dict[str, NDArray[Any]]]:
    shapes: list[tuple[str, tuple[int, ...], str]] = [
        ("w", (7, 5), "f4"), ("one", (1,), "f4"), ("none", (0, 3), "f4"), ("scalar", (), "f8"),
        ("wide", (9,), "f8"), ("half", (11,), "f2"), ("steps", (), "i8"), ("mask", (4,), "?"), ("small", (3,), "i1"),
    ]  # fmt: skip
    found = []
    for _ in range(count):
        scales = 10 ** rng.uniform(-spread, spread)
        found.append({n: np.asarray(rng.standard_normal(s) * scales % 1000).astype(t) for n, s, t in shapes})
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_gives_flowers_model_over_rounds(name: str) -> None:
    rng = np.random.default_rng(1)
    ours, its = (
        registry.get("strategies", name)(**OPTIONS.get(name, {})),
        getattr(flowers, name)(**OPTIONS.get(name, {})),
    )
    assert type(ours).__module__ == averaging.__name__
    model = models(rng, 1)[0]
    model = {key: array for key, array in model.items() if array.dtype.kind == "f"}
    for number in (1, 2, 3):
        changed = [{key: array + array.dtype.type(0.01 * k) for key, array in model.items()} for k in range(1, 6)]
        found = []
        for strategy in (ours, its):
            asked = strategy.configure_train(
                number, flower_record(model), ConfigRecord({}), GridView(None, range(2, 7))
            )
            assert sorted(message.metadata.dst_node_id for message in asked) == [2, 3, 4, 5, 6]
            found.append(strategy.aggregate_train(number, replies(changed, [3, 1, 4, 1, 5])))
        (mine, told), (flower, its_told) = found
        assert as_bytes(mine) == as_bytes(flower) and told == its_told
        model = {key: array.numpy() for key, array in mine.items()}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.booleans())
def test_sums_are_flowers_to_the_bit(seed: int, count: int, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    given_models = models(rng, count)
    counts = [int(c) if whole else float(c) for c in rng.uniform(1, 1000, count)]
    found, metrics = averaging.FedAvg().aggregate_train(1, replies(given_models, counts))
    flower, its = flowers.FedAvg().aggregate_train(1, replies(given_models, counts, flower_record))
    assert as_bytes(found) == as_bytes(flower) and metrics == its


@pytest.mark.parametrize("stacked", [1, 300, 5000])
def test_sums_do_not_depend_on_how_many_are_added_at_once(stacked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averaging, "STACKED", stacked)
    given_models = models(np.random.default_rng(2), 13)
    found, _ = averaging.FedAvg().aggregate_train(1, replies(given_models, [1.5] * 13))
    flower, _ = flowers.FedAvg().aggregate_train(1, replies(given_models, [1.5] * 13))
    assert as_bytes(found) == as_bytes(flower)


def test_arrays_in_another_order_of_memory_are_added_as_flower_adds_them() -> None:
    given_models = models(np.random.default_rng(3), 4)
    given_models[2]["w"] = np.asfortranarray(given_models[2]["w"])
    given_models[0]["w"] = np.asfortranarray(given_models[0]["w"])
    found, _ = averaging.FedAvg().aggregate_train(1, replies(given_models, [1, 2, 3, 4], flower_record))
    flower, _ = flowers.FedAvg().aggregate_train(1, replies(given_models, [1, 2, 3, 4], flower_record))
    assert {k: a.numpy().tolist() for k, a in found.items()} == {k: a.numpy().tolist() for k, a in flower.items()}  # type: ignore[union-attr]


def test_replies_that_do_not_agree_are_left_to_flower() -> None:
    """Its reasons are the ones that people know."""
    given_models = models(np.random.default_rng(4), 3)
    del given_models[1]["w"]
    with pytest.raises(Exception, match="same keys"):
        averaging.FedAvg().aggregate_train(1, replies(given_models, [1, 1, 1]))
    listed = replies(models(np.random.default_rng(5), 2), [1, 1])
    for reply in listed:
        reply.content["metrics"] = MetricRecord({"num-examples": 2, "list": [1.0, 2.0]})
    _, metrics = averaging.FedAvg().aggregate_train(1, listed)
    assert metrics is not None and metrics["list"] == [1.0, 2.0]


def test_a_metric_function_of_ones_own_is_asked() -> None:
    own = averaging.FedAvg(train_metrics_aggr_fn=lambda contents, key: MetricRecord({"seen": len(contents)}))
    _, metrics = own.aggregate_train(1, replies(models(np.random.default_rng(6), 2), [1, 1]))
    assert metrics == MetricRecord({"seen": 2})


def test_evaluations_are_averaged_as_flower_does() -> None:
    told = replies([{}] * 4, [1, 2, 3, 4], lambda _: from_numpy({}))
    for reply in told:
        del reply.content["arrays"]
    assert averaging.FedAvg().aggregate_evaluate(1, told) == flowers.FedAvg().aggregate_evaluate(1, told)
