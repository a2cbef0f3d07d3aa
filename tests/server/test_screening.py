"""Screening: each way in which a reply can be wrong has a reason, nothing raises, and what is accepted has one form."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from astrofed.server.screening import (
    Rejected,
    pool_statistics,
    screen_evaluation,
    screen_statistics,
    screen_training,
)
from astrofed.shared.arrays import from_numpy, to_numpy
from astrofed.shared.npy import NPY

MODEL = {"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32), "steps": np.array(4)}
EXPECTED = {11: 40, 12: 50, 13: 60}
GOOD_METRICS: dict[str, Any] = {"num-examples": 30, "loss": 0.5}


def reply(node: int, content: RecordDict | Error, kind: str = "train") -> Message:
    order = Message(content=RecordDict(), dst_node_id=node, message_type=kind)
    return Message(content, reply_to=order)


def train_reply(
    node: int,
    arrays: Mapping[str, NDArray[Any]] | ArrayRecord | None = None,
    metrics: Mapping[str, Any] | None = None,
    **records: Any,
) -> Message:
    record = arrays if isinstance(arrays, ArrayRecord) else from_numpy(MODEL if arrays is None else arrays)
    own = MetricRecord(dict(GOOD_METRICS if metrics is None else metrics))
    return reply(node, RecordDict({"arrays": record, "metrics": own, **records}))


def others() -> list[Message]:
    return [train_reply(12), train_reply(13)]


def reason_for(bad: Message) -> str:
    """Screen one bad reply among good ones; return its reason."""
    accepted, rejected = screen_training([bad, *others()], MODEL, EXPECTED)
    assert [message.metadata.src_node_id for message in accepted] == [12, 13]
    assert [item.node_id for item in rejected] == [11]
    return rejected[0].reason


def changed(**arrays: Any) -> dict[str, NDArray[Any]]:
    return {**MODEL, **{name: np.asarray(value) for name, value in arrays.items()}}


def raw(array: Array, data: bytes) -> ArrayRecord:
    record = from_numpy(MODEL)
    record["w"] = Array(array.dtype, array.shape, NPY, data)
    return record


def test_good_replies_come_in_the_order_asked_and_in_one_form() -> None:
    """Names in another order, records under other names and private metrics must not reach a strategy."""
    odd = RecordDict(
        {
            "my metrics": MetricRecord({"mine": 1.0, "num-examples": 60.0, "loss": 2}),
            "config": ConfigRecord({"x": 1}),
            "weights": from_numpy(dict(reversed(MODEL.items()))),
        }
    )
    accepted, rejected = screen_training([reply(13, odd), train_reply(12), train_reply(11)], MODEL, EXPECTED)
    assert rejected == []
    assert [message.metadata.src_node_id for message in accepted] == [11, 12, 13]
    for message in accepted:
        assert list(message.content) == ["arrays", "metrics"]
        assert list(message.content.array_records["arrays"]) == list(MODEL)
        assert list(message.content.metric_records["metrics"]) == ["num-examples", "loss"]
    assert dict(accepted[2].content.metric_records["metrics"]) == {"num-examples": 60, "loss": 2}


def test_examples_count_as_the_site_enrolled_with_and_never_as_one_reply_claims() -> None:
    accepted, _ = screen_training([train_reply(11), *others()], MODEL, EXPECTED)
    assert [m.content.metric_records["metrics"]["num-examples"] for m in accepted] == [40, 50, 60]


def test_an_answer_to_another_rounds_question_is_stale() -> None:
    order = Message(content=RecordDict(), dst_node_id=11, message_type="train")
    order.metadata.__dict__["_message_id"] = "round 1"
    late = Message(train_reply(11).content, reply_to=order)
    _, rejected = screen_training([late], MODEL, {11: 40}, questions={11: "round 2"})
    assert rejected == [Rejected(11, "stale: it answers another message than this round's")]
    accepted, rejected = screen_training([late], MODEL, {11: 40}, questions={11: "round 1"})
    assert len(accepted) == 1 and rejected == []


def test_an_update_longer_than_the_plan_allows() -> None:
    """w moves by 2 in six places and b by 1 in three: sqrt(27) in all. Counters have no length."""
    far = train_reply(11, changed(w=MODEL["w"] + 2, b=MODEL["b"] + 1, steps=900))
    accepted, rejected = screen_training([far], MODEL, {11: 40}, max_norm=5.0)
    assert accepted == [] and rejected == [Rejected(11, "its update is 5.196 long; the plan allows 5")]
    accepted, rejected = screen_training([far], MODEL, {11: 40}, max_norm=5.2)
    assert len(accepted) == 1 and rejected == []


def test_buffers_are_not_copied_and_the_original_reply_is_left_alone() -> None:
    original = train_reply(11)
    (accepted,), _ = screen_training([original], MODEL, {11: 40})
    before, after = original.content.array_records["arrays"], accepted.content.array_records["arrays"]
    assert all(after[name].data is before[name].data for name in MODEL)
    after.pop("w")  # as Flower's FedMedian does
    assert "w" in original.content.array_records["arrays"]


def test_types_and_shapes_are_those_of_the_bytes_not_those_claimed() -> None:
    record = from_numpy(MODEL)
    record["w"] = Array("complex128", (99,), NPY, record["w"].data)
    (accepted,), _ = screen_training([train_reply(11, record)], MODEL, {11: 40})
    array = accepted.content.array_records["arrays"]["w"]
    assert (array.dtype, array.shape) == ("float32", (2, 3))


def test_fortran_order_is_accepted() -> None:
    """numpy writes a transposed matrix so; it is no mistake."""
    record = from_numpy(MODEL)
    record["w"] = Array(np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)))
    (accepted,), _ = screen_training([train_reply(11, record)], MODEL, {11: 40})
    assert to_numpy(accepted.content.array_records["arrays"])["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_nobody_replied() -> None:
    accepted, rejected = screen_training([], MODEL, EXPECTED)
    assert accepted == [] and rejected == [Rejected(node, "no reply") for node in EXPECTED]


def test_an_error_is_its_own_reason_cut_and_cleaned() -> None:
    assert reason_for(reply(11, Error(code=2, reason="world.zarr lacks 'ta'"))) == "world.zarr lacks 'ta'"
    long = reason_for(reply(11, Error(code=2, reason="\x1b[31m" + "x\n" * 500)))
    assert len(long) == 200 and long.isprintable() and long.endswith("…")
    assert reason_for(reply(11, Error(code=7))) == "error 7 without a reason"


def test_a_reply_of_another_kind_or_without_content() -> None:
    late = reply(11, train_reply(11).content, "evaluate")
    assert reason_for(late) == "a reply of type 'evaluate'; 'train' was asked for"
    empty = train_reply(11)
    empty.__dict__["_content"] = None
    assert reason_for(empty) == "the reply is empty"


def test_no_arrays_or_several_records_of_them() -> None:
    assert reason_for(reply(11, RecordDict({"metrics": MetricRecord(GOOD_METRICS)}))) == "no arrays"
    assert reason_for(train_reply(11, more=from_numpy({}))) == "2 records of arrays; exactly one is read"


def test_missing_extra_and_renamed_arrays_are_named() -> None:
    absent = {name: array for name, array in MODEL.items() if name != "b"}
    assert reason_for(train_reply(11, absent)) == "the arrays are not the model's: absent 'b', unknown none"
    extra = {**MODEL, "c": np.ones(1)}
    assert reason_for(train_reply(11, extra)) == "the arrays are not the model's: absent none, unknown 'c'"
    assert "absent 'b', unknown 'B\\\\'" in reason_for(train_reply(11, {**absent, "B\\": MODEL["b"]}))
    many = {**MODEL, **{f"{i}": np.ones(1) for i in range(9)}}
    assert reason_for(train_reply(11, many)).endswith("unknown '0', '1', '2', '3', '4' and 4 more")


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 2, 3), (2, 1), (0, 3), ()])
def test_another_shape(shape: tuple[int, ...]) -> None:
    """(2, 1) would broadcast silently, the others raise in the strategy."""
    told = reason_for(train_reply(11, changed(w=np.ones(shape, np.float32))))
    assert told == f"array 'w' has the shape {shape}; the model's is (2, 3)"


@pytest.mark.parametrize("dtype", ["complex64", "int32", "float64", ">f4", "bool", "float16"])
def test_another_type(dtype: str) -> None:
    """One complex reply makes the whole model complex."""
    told = reason_for(train_reply(11, changed(w=np.ones((2, 3), dtype))))
    assert told == f"array 'w' is of type {np.dtype(dtype)}; the model's is float32"


def test_objects_are_never_unpickled() -> None:
    data = (
        b"\x93NUMPY\x01\x00\x46\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }".ljust(69) + b"\n"
    )
    assert "holds Python objects" in reason_for(train_reply(11, raw(from_numpy(MODEL)["w"], data + b"x" * 48)))


def header(text: str, version: int = 1) -> bytes:
    body = text.encode("latin-1") + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(body).to_bytes(2 if version == 1 else 4, "little") + body


HEAD = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}"


MALFORMED = [
    b"",
    b"\x93NUMPY",
    b"\x80\x04pickle",
    header(HEAD % "(2, 3)") + b"x" * 23,
    header(HEAD % "(2, 3)") + b"x" * 25,
    header(HEAD % "(-2, -3)") + b"x" * 24,
    header(HEAD % "(0, 10**30)"),
    header(HEAD % "(0, 999999999999999999999999)"),
    header(HEAD % f"({'9' * 4000},)"),
    header(HEAD % ("(" + "1," * 70 + ")")) + b"x" * 4,
    header("{'descr': (), 'fortran_order': False, 'shape': (2, 3)}"),
    header("{'descr': '|V0', 'fortran_order': False, 'shape': (2, 3)}"),
    header("{'descr': ('<f4', (2,)), 'fortran_order': False, 'shape': (3,)}") + b"x" * 24,
    header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 3)}") + b"x" * 24,
    header("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (3,)}") + b"x" * 24,
    header("{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L), }") + b"x" * 24,
    header("{'descr': '<f4', 'shape': (2, 3)}") + b"x" * 24,
    header("(" * 300),
    header("'''"),
    header("\x00\xff"),
    header(HEAD % "(2, 3)", version=9) + b"x" * 24,
    from_numpy(MODEL)["w"].data[:-1],
    from_numpy(MODEL)["w"].data + b"\0",
]


@pytest.mark.parametrize("data", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_bytes(data: bytes) -> None:
    told = reason_for(train_reply(11, raw(from_numpy(MODEL)["w"], data)))
    assert told.startswith("array 'w' ") and len(told) <= 200


def test_arrays_of_other_libraries_are_not_read() -> None:
    record = from_numpy(MODEL)
    record["w"] = Array("float32", (2, 3), "torch.pickle", b"x")
    assert reason_for(train_reply(11, record)) == "array 'w' is stored as 'torch.pickle'; only 'numpy.ndarray' is read"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted(value: float) -> None:
    told = reason_for(train_reply(11, changed(w=np.array([[1, value, 1], [value, 1, 1]], np.float32))))
    assert told == "array 'w' holds 2 values of 6 that are not finite"


def test_values_beyond_float32_are_refused_in_float64_models_too() -> None:
    """Their squares would overflow float64, and every distance with them."""
    model = {"w": np.zeros(3)}
    accepted, rejected = screen_training([train_reply(11, {"w": np.array([1e39, 0, np.nan])})], model, {11: 40})
    assert rejected[0].reason == "array 'w' holds 2 values of 3 that are not finite or beyond 3.4e+38"
    largest = {"w": np.array([float(np.finfo(np.float32).max), 0, 0])}
    accepted, rejected = screen_training([train_reply(11, largest)], model, {11: 40})
    assert len(accepted) == 1 and rejected == []


def test_metrics_that_are_missing_or_doubled() -> None:
    assert reason_for(reply(11, RecordDict({"arrays": from_numpy(MODEL)}))) == "no metrics"
    assert reason_for(train_reply(11, more=MetricRecord())) == "2 records of metrics; exactly one is read"


@pytest.mark.parametrize(
    ("value", "shown"),
    [([1.0, 2.0], "a list"), (math.nan, "nan"), (math.inf, "inf")],
)
def test_metrics_that_are_not_one_finite_number(value: Any, shown: str) -> None:
    told = reason_for(train_reply(11, metrics={**GOOD_METRICS, "loss": value}))
    assert told == f"metric 'loss' is {shown}; it must be one finite number"


def test_integers_that_python_alone_can_hold() -> None:
    assert reason_for(train_reply(11, metrics={**GOOD_METRICS, "loss": 10**5000})) == (
        "metric 'loss' is an integer beyond 64 bits"
    )


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (None, "its metrics lack 'num-examples'"),
        (0, "num-examples is 0; it must be a positive whole number"),
        (-3, "num-examples is -3; it must be a positive whole number"),
        (2.5, "num-examples is 2.5; it must be a positive whole number"),
        (math.nan, "metric 'num-examples' is nan; it must be one finite number"),
        ([5], "metric 'num-examples' is a list; it must be one finite number"),
        (41, "num-examples is 41, but the site enrolled with 40"),
        (10**15, "num-examples is 1000000000000000, but the site enrolled with 40"),
        (1e15, "num-examples is 1000000000000000.0, but the site enrolled with 40"),
    ],
)
def test_counts_of_examples(count: Any, told: str) -> None:
    """1e15 examples would own a mean weighted by them, NaN and 0 ruin it, and negative ones turn it round."""
    metrics = {"loss": 1.0} if count is None else {"loss": 1.0, "num-examples": count}
    assert reason_for(train_reply(11, metrics=metrics)) == told


def test_two_replies_of_one_node_are_both_left_out() -> None:
    accepted, rejected = screen_training([train_reply(11), *others(), train_reply(11)], MODEL, EXPECTED)
    assert [message.metadata.src_node_id for message in accepted] == [12, 13]
    assert rejected == [Rejected(11, "2 replies; nothing says which is meant, so none is used")]


def test_replies_of_nodes_that_were_not_asked() -> None:
    accepted, rejected = screen_training([train_reply(99), *others(), train_reply(11)], MODEL, EXPECTED)
    assert len(accepted) == 3 and rejected == [Rejected(99, "it was not asked")]


def test_flowers_strategies_survive_what_they_would_not_without_screening() -> None:
    """Each of these replies ends Flower's own loop or owns its model; after screening the others' mean is left."""
    bad = [
        train_reply(1, changed(w=np.full((2, 3), np.nan, np.float32))),
        train_reply(2, metrics={"num-examples": 10**15, "loss": 1.0}),
        train_reply(3, changed(w=np.ones((3, 2), np.float32))),
        train_reply(4, metrics={"num-examples": 30, "loss": [1.0]}),
        reply(5, Error(code=2, reason="broken")),
    ]
    good = [train_reply(6), train_reply(7, changed(w=3 * np.ones((2, 3), np.float32)), {"num-examples": 30, "mine": 1})]
    for cls in (FedAvg, FedMedian):
        accepted, rejected = screen_training([*bad, *good], MODEL, dict.fromkeys(range(1, 8), 100))
        arrays, metrics = cls().aggregate_train(1, accepted)
        assert arrays is not None and metrics is not None
        assert to_numpy(arrays)["w"].tolist() == [[2.0] * 3] * 2
        assert [item.node_id for item in rejected] == [1, 2, 3, 4, 5]


numbers = st.floats() | st.integers(-(2**70), 2**70)
metric_values = numbers | st.lists(st.floats(), max_size=3) | st.lists(st.integers(), max_size=3)
dtypes = st.sampled_from(
    ["<f4", ">f4", "<f8", "<f2", "<i8", "|b1", "<c8", "|O", "|S3", "<U2", "|V4", "<M8[s]", "q", ""]
)
shapes = st.lists(st.integers(-3, 7) | st.just(2**62), max_size=4).map(tuple)
heads = st.builds(
    lambda dtype, order, shape: header(f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}}}"),
    dtypes,
    st.booleans(),
    shapes,
)
payloads = st.one_of(
    st.binary(max_size=40),
    st.builds(bytes.__add__, heads, st.binary(max_size=64)),
    st.builds(lambda text, tail: header(text) + tail, st.text(st.characters(max_codepoint=255)), st.binary(max_size=9)),
    st.builds(
        lambda position, byte: (
            (d := from_numpy(MODEL)["w"].data)[: position % len(d)] + byte + d[position % len(d) + 1 :]
        ),
        st.integers(0, 500),
        st.binary(min_size=1, max_size=1),
    ),
)
wire_arrays = st.builds(
    Array,
    st.text(max_size=8),
    st.lists(st.integers(-5, 5), max_size=3).map(tuple),
    st.sampled_from([NPY, NPY, NPY, "torch", ""]),
    payloads | st.just(from_numpy(MODEL)["w"].data),
)
array_records = st.dictionaries(st.sampled_from(["w", "b", "steps"]) | st.text(max_size=4), wire_arrays, max_size=4)
metric_records = st.dictionaries(
    st.sampled_from(["num-examples", "loss"]) | st.text(max_size=4), metric_values, max_size=4
)
records = st.one_of(
    array_records.map(ArrayRecord),
    array_records.map(lambda arrays: ArrayRecord({**from_numpy(MODEL), **arrays})),
    metric_records.map(MetricRecord),
    metric_records.map(lambda metrics: MetricRecord({**GOOD_METRICS, **metrics})),
    st.just(ConfigRecord({"x": b"y"})),
)
contents = st.dictionaries(st.sampled_from(["arrays", "metrics"]) | st.text(max_size=3), records, max_size=3).map(
    RecordDict
)
errors = st.builds(Error, st.integers(), st.none() | st.text())


@given(st.lists(st.tuples(st.integers(10, 14), contents | errors, st.sampled_from(["train", "evaluate", "query.x"]))))
@settings(max_examples=250, deadline=None)
def test_whatever_replies_hold_screening_has_an_answer(drawn: list[tuple[int, RecordDict | Error, str]]) -> None:
    """Every node asked is accepted or rejected with a printable reason, and what is accepted is sound."""
    messages = [reply(node, content, kind) for node, content, kind in drawn]
    accepted, rejected = screen_training(messages, MODEL, EXPECTED)
    nodes = [message.metadata.src_node_id for message in accepted]
    assert set(nodes) | {item.node_id for item in rejected} >= set(EXPECTED)
    assert not set(nodes) & {item.node_id for item in rejected}
    for message in accepted:
        arrays = to_numpy(message.content.array_records["arrays"])
        assert all(a.shape == MODEL[k].shape and a.dtype == MODEL[k].dtype for k, a in arrays.items())
        assert all(np.isfinite(array).all() for array in arrays.values())
        for name, array in message.content.array_records["arrays"].items():  # Flower's own reader sees the same
            np.testing.assert_array_equal(array.numpy(), arrays[name])
        assert 1 <= message.content.metric_records["metrics"]["num-examples"] <= 60  # type: ignore[operator]
    evaluated, refused = screen_evaluation(messages, list(EXPECTED))
    assert all(math.isfinite(value) for metrics in evaluated.values() for value in metrics.values())
    statistics, unpooled = screen_statistics(messages, list(EXPECTED))
    pool_statistics(statistics)
    for item in (*rejected, *refused, *unpooled):
        assert item.reason and item.reason.isprintable() and len(item.reason) < 1000


def evaluate_reply(node: int, metrics: Mapping[str, Any]) -> Message:
    return reply(node, RecordDict({"metrics": MetricRecord(dict(metrics))}), "evaluate")


def test_evaluation_keeps_finite_numbers_and_needs_a_loss() -> None:
    replies = [
        evaluate_reply(13, {"loss": 2, "rmse/ta": math.nan, "list": [1.0], "num-examples": 7}),
        evaluate_reply(12, {"rmse/ta": 1.0}),
        evaluate_reply(11, {"loss": math.inf}),
    ]
    by_node, rejected = screen_evaluation(replies, [11, 12, 13, 14])
    assert by_node == {13: {"loss": 2.0, "num-examples": 7.0}}
    assert rejected == [
        Rejected(11, "metric 'loss' is inf; it must be one finite number"),
        Rejected(12, "its metrics lack 'loss'"),
        Rejected(14, "no reply"),
    ]


def statistics_reply(node: int, arrays: Mapping[str, Any]) -> Message:
    record = from_numpy({name: np.asarray(value) for name, value in arrays.items()})
    return reply(node, RecordDict({"arrays": record}), "query.statistics")


def test_statistics_are_pooled_by_the_prefix_of_their_name() -> None:
    """The median does not follow a site that lies, the mean does; a site without statistics takes no part."""
    values = {1: [1.0, 5.0], 2: [2.0, 6.0], 3: [900.0, -900.0]}
    replies = [statistics_reply(node, {"median:x": value, "mean:y": value[0]}) for node, value in values.items()]
    by_node, rejected = screen_statistics([*replies, statistics_reply(4, {})], [1, 2, 3, 4])
    assert rejected == [] and list(by_node) == [1, 2, 3, 4] and by_node[4] == {}
    pooled = pool_statistics(by_node)
    assert pooled["median:x"].tolist() == [2.0, 5.0]
    assert pooled["mean:y"].shape == () and pooled["mean:y"] == pytest.approx(301.0)
    assert pool_statistics({1: {}}) == {} == pool_statistics({})


def test_statistics_that_differ_from_those_of_most_sites() -> None:
    usual = {"mean:x": np.zeros(3)}
    replies = [
        statistics_reply(1, {"mean:x": np.zeros(4)}),
        statistics_reply(2, usual),
        statistics_reply(3, usual),
        statistics_reply(4, {"mean:x": np.full(3, np.nan)}),
        statistics_reply(5, {"mean:x": np.zeros(3, int)}),
        statistics_reply(6, {"x": np.zeros(3)}),
    ]
    by_node, rejected = screen_statistics(replies, [1, 2, 3, 4, 5, 6])
    assert list(by_node) == [2, 3]
    assert [item.reason for item in rejected] == [
        "the names or shapes of its statistics are not those of most sites",
        "array 'mean:x' holds 3 values of 3 that are not finite",
        "statistic 'mean:x' is of type int64; it must be of floats",
        "statistic 'x' does not say how it is pooled: its name must begin with ('median:', 'mean:')",
    ]
