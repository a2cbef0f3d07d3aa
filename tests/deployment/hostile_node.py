"""A site with a valid key whose node sends what no honest one would, another thing each round; see `small_node.py`."""

import hashlib

import httpx
import numpy as np
import small_node
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree

from astrofed.shared import packing, records

HUGE = 3 * 2**20  # bytes; more than the tests' server takes of one reply


def _spoiled(reply: Message, push: small_node.Push) -> Message:
    if not reply.has_content() or reply.metadata.message_type != "train":
        return reply
    number = _spoiled.rounds = getattr(_spoiled, "rounds", 0) + 1  # type: ignore[attr-defined]
    content = reply.content
    arrays = {name: array.numpy() for name, array in content.array_records["arrays"].items()}
    if number == 1:
        _push_huge(reply, push)
        return records.with_content(reply, RecordDict({packing.NAME: ConfigRecord({"anything": b"garbage"})}))
    if number == 2:
        arrays = {name: array[..., :1] for name, array in arrays.items()}
    if number == 3:
        arrays = {name: np.full_like(array, np.nan) for name, array in arrays.items()}
    if number == 4:
        content.metric_records["metrics"]["num-examples"] = 10**12
    changed = ArrayRecord({name: Array(np.ascontiguousarray(array)) for name, array in arrays.items()})
    return records.with_content(reply, RecordDict({**content, "arrays": changed}))


def _push_huge(reply: Message, push: small_node.Push) -> None:
    """Send a reply that is larger than the server takes."""
    content = ConfigRecord({"x": np.random.default_rng(0).bytes(HUGE)}).deflate()
    tree = ObjectTree(object_id=hashlib.sha256(content).hexdigest())
    envelope = records.with_content(reply, RecordDict())
    envelope.metadata.__dict__["_message_id"] = tree.object_id
    try:
        push(tree, envelope, {tree.object_id: content})
    except httpx.HTTPStatusError as error:
        print(f"refused: {error.response.status_code}", flush=True)  # noqa: T201


if __name__ == "__main__":
    small_node.serve(_spoiled)
