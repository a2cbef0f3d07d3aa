"""Records put together quickly are what Flower's own constructors make, and views by kind reach through."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from astrofed.shared import records
from astrofed.shared.arrays import from_numpy


def both() -> tuple[RecordDict, RecordDict]:
    arrays = {"w": Array(np.arange(3.0)), "b": Array(np.ones((2, 2), np.float32))}
    numbers = {"loss": 0.5, "num-examples": 3}
    settings = ConfigRecord({"server-round": 1})
    flowers = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({**numbers}), "config": settings}
    return RecordDict({**flowers}), records.content(
        {"arrays": records.arrays(arrays), "metrics": records.metrics(numbers), "config": settings}
    )


def test_content_is_what_flower_makes_and_reads() -> None:
    flowers, quick = both()
    assert quick == flowers
    assert quick.object_id == flowers.object_id  # the digest of what goes over a wire
    inflated = RecordDict.inflate(quick.deflate(), {record.object_id: record for record in quick.values()})
    assert inflated == flowers
    assert repr(quick) == repr(flowers)


@pytest.mark.parametrize("kind", ["array_records", "metric_records", "config_records"])
def test_a_view_by_kind_is_flowers_and_reaches_through(kind: str) -> None:
    flowers, quick = both()
    view = getattr(quick, kind)
    assert dict(view) == dict(getattr(flowers, kind)) and len(view) == 1
    (name, record), *_ = view.items()
    view["another"] = record
    del view[name]
    assert "another" in quick and name not in quick
    with pytest.raises(TypeError, match="Expected"):
        view["another"] = ConfigRecord() if kind != "config_records" else MetricRecord()


def test_records_made_quickly_still_refuse_what_flower_refuses() -> None:
    _, quick = both()
    with pytest.raises(TypeError):
        quick["x"] = 3  # type: ignore[assignment]
    with pytest.raises(TypeError):
        records.metrics({})["x"] = "text"  # type: ignore[assignment]


@pytest.fixture
def message(monkeypatch: pytest.MonkeyPatch) -> Message:
    for name in ("_run_id", "_node_id", "_task_id"):  # Flower's Message constructor reads the sender from here
        monkeypatch.setattr(TaskIdentity, name, 1)
    asked = Message(both()[0], dst_node_id=3, message_type="train", group_id="7", ttl=60.0, dst_task_id=4)
    asked.metadata.__dict__["_message_id"] = "asked"
    asked.metadata.delivered_at = "a moment ago"  # what a SuperLink notes; it refuses a reply that carries it on
    return asked


def test_an_envelope_with_other_content_leaves_the_first_message_alone(message: Message) -> None:
    _, quick = both()
    other = records.with_content(message, quick)
    other.content["arrays"] = from_numpy({})
    assert other.metadata is message.metadata and len(message.content["arrays"]) == 2


def test_a_reply_is_the_one_that_flower_makes(message: Message) -> None:
    _, quick = both()
    mine, flowers = records.reply(message, quick), Message(quick, reply_to=message)
    times = ("_created_at", "_ttl")
    assert mine.content is quick and not mine.has_error()
    assert {k: v for k, v in mine.metadata.__dict__.items() if k not in times} == {
        k: v for k, v in flowers.metadata.__dict__.items() if k not in times
    }
    for name in times:
        assert mine.metadata.__dict__[name] == pytest.approx(flowers.metadata.__dict__[name], abs=1)
    assert mine.metadata.reply_to_message_id == "asked" and mine.metadata.src_node_id == 3


def test_messages_to_many_are_those_that_flower_makes(message: Message) -> None:
    _, quick = both()
    made = records.messages(quick, "train", [5, 7, 9])
    for mine, node in zip(made, (5, 7, 9), strict=True):
        flowers = Message(quick, dst_node_id=node, message_type="train")
        created = {"_created_at"}
        mine_told, flowers_told = (
            {k: v for k, v in m.metadata.__dict__.items() if k not in created} for m in (mine, flowers)
        )
        assert mine_told == flowers_told and mine.content is quick and not mine.has_error()
        assert (records.receiver(mine), records.sender(mine)) == (node, flowers.metadata.src_node_id)
    made[0].metadata.__dict__["_message_id"] = "first"
    assert made[1].metadata.message_id == ""
    assert records.messages(quick, "train", []) == []
