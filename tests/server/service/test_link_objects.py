"""The store of messages' objects: an object lies there once, and as long as a message that has it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import NoObjectInStoreError

from astrofed.server.service.link_objects import MessageObjects, object_ids


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MessageObjects]:
    made = MessageObjects(tmp_path / "objects.sqlite")
    yield made
    made.close()


def _record(*values: float) -> tuple[ObjectTree, dict[str, bytes]]:
    import numpy as np

    record = ArrayRecord({f"a{i}": Array(np.array([value])) for i, value in enumerate(values)})
    return get_object_tree(record), {key: each.deflate() for key, each in get_all_nested_objects(record).items()}


def test_a_message_is_complete_when_all_its_objects_are_there(store: MessageObjects) -> None:
    tree, contents = _record(1.0, 2.0)
    assert set(store.preregister(1, tree)) == set(contents)
    for identifier, content in contents.items():
        assert not store.is_complete(tree.object_id)
        assert store.get(identifier) == b""
        store.put(identifier, content)
        assert store.get(identifier) == content
    assert store.is_complete(tree.object_id)
    assert store.get_object_tree(tree.object_id) == tree
    assert store.preregister(1, tree) == []


def test_an_object_that_two_messages_share_goes_with_the_last(store: MessageObjects) -> None:
    one, contents = _record(1.0, 2.0)
    two, others = _record(1.0, 3.0)
    shared = set(contents) & set(others)
    assert shared
    store.preregister(1, one)
    missing = store.preregister(2, two)
    assert set(missing) == set(others)
    for identifier, content in {**contents, **others}.items():
        store.put(identifier, content)
    store.delete(one.object_id)
    assert not store.is_complete(one.object_id)
    assert store.is_complete(two.object_id)
    assert all(identifier not in store for identifier in set(contents) - shared)
    store.delete_objects_in_run(2)
    assert len(store) == 0


def test_what_is_not_what_it_says_is_refused(store: MessageObjects) -> None:
    tree, contents = _record(1.0)
    identifier = tree.object_id
    with pytest.raises(NoObjectInStoreError):
        store.put(identifier, contents[identifier])
    with pytest.raises(NoObjectInStoreError):
        store.get_object_tree(identifier)
    store.preregister(1, tree)
    with pytest.raises(ValueError, match="not the one"):
        store.put(identifier, contents[identifier] + b"x")
    with pytest.raises(ValueError, match="no object's id"):
        store.preregister(1, ObjectTree(object_id="../../etc/passwd"))
    with pytest.raises(ValueError, match="no object's id"):
        object_ids(ObjectTree(object_id=identifier, children=[ObjectTree(object_id="A" * 64)]))


def test_what_was_stored_outlasts_the_process(tmp_path: Path) -> None:
    tree, contents = _record(1.0)
    store = MessageObjects(tmp_path / "objects.sqlite")
    store.preregister(1, tree)
    store.set_members("run", {1, 2**64 - 1})
    for identifier, content in contents.items():
        store.put(identifier, content)
    store.close()
    again = MessageObjects(tmp_path / "objects.sqlite")
    assert again.is_complete(tree.object_id)
    assert again.members("run") == {1, 2**64 - 1}
    again.close()
