"""Where messages' objects lie while they are on their way: Flower's object store, as one SQLite file of our own.

Flower's store walks each message's tree with some hundred statements. This one keeps a message's tree in one row and
counts in how many trees an object stands: a model that goes to all sites lies there once. A large message's arrays are
a blob, a file in a folder beside it (`shared.blobs`), which comes and goes like any other object of the tree.
"""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.supercore.object_store import NoObjectInStoreError, ObjectStore

from astrofed.shared.blobs import Blobs
from astrofed.shared.packing import blob_id

STALE_S = 3600.0  # after which a file that belongs to no message is a leftover
_SCHEMA = """
CREATE TABLE IF NOT EXISTS tree (root TEXT PRIMARY KEY, run TEXT NOT NULL, content BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tree_run ON tree (run);
CREATE TABLE IF NOT EXISTS object (id TEXT PRIMARY KEY, trees INTEGER NOT NULL, content BLOB);
CREATE TABLE IF NOT EXISTS member (run TEXT NOT NULL, node TEXT NOT NULL, PRIMARY KEY (run, node)) WITHOUT ROWID;
"""


class MessageObjects(ObjectStore):
    """The store in a file; not for use by several threads at once."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.blobs = Blobs(path.with_name("blobs"))
        self._connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;" + _SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def preregister(self, run_id: int, object_tree: ObjectTree) -> list[str]:
        """Enter a message's tree; return the ids of its objects that are still to come.

        Raises:
            ValueError: an id is not the digits of a SHA-256.
        """
        ids = object_ids(object_tree)
        with self._transaction():
            if not self._one("SELECT 1 FROM tree WHERE root = ?", object_tree.object_id):
                self._connection.execute(
                    "INSERT INTO tree VALUES (?, ?, ?)",
                    (object_tree.object_id, str(run_id), object_tree.SerializeToString()),
                )
                self._connection.executemany(
                    "INSERT INTO object VALUES (?, 1, NULL) ON CONFLICT (id) DO UPDATE SET trees = trees + 1",
                    [(identifier,) for identifier in ids],
                )
            return [identifier for identifier in ids if not self._available(identifier)]

    def get_object_tree(self, object_id: str) -> ObjectTree:
        """Return a message's tree.

        Raises:
            NoObjectInStoreError: there is no such message.
        """
        row = self._one("SELECT content FROM tree WHERE root = ?", object_id)
        if row is None:
            raise NoObjectInStoreError(f"object {object_id} was not registered")
        tree: ObjectTree = ObjectTree.FromString(row[0])
        return tree

    def put(self, object_id: str, object_content: bytes) -> None:
        """Keep an object's content.

        Raises:
            ValueError: the content has another hash than its id says, or is no object of Flower's.
            NoObjectInStoreError: no message that has it was registered.
        """
        if hashlib.sha256(object_content).hexdigest() != object_id:
            raise ValueError(f"object {object_id} is not the one whose content came")
        validate_object_content(content=object_content)
        changed = self._connection.execute(
            "UPDATE object SET content = ? WHERE id = ? AND content IS NULL", (object_content, object_id)
        )
        if not changed.rowcount and object_id not in self:
            raise NoObjectInStoreError(f"object {object_id} was not registered")

    def get(self, object_id: str) -> bytes | None:
        """Return an object's content, b"" if it is still to come, None if nobody registered it."""
        row = self._one("SELECT content FROM object WHERE id = ?", object_id)
        if row is None:
            return None
        content: bytes | None = row[0]
        return b"" if content is None else content

    def is_complete(self, root: str) -> bool:
        """Whether a message is registered and all of its objects are there."""
        row = self._one("SELECT content FROM tree WHERE root = ?", root)
        return row is not None and all(self._available(each) for each in object_ids(ObjectTree.FromString(row[0])))

    def delete(self, object_id: str) -> None:
        """Delete a message's tree, and its objects that stand in no other."""
        with self._transaction():
            row = self._one("SELECT content FROM tree WHERE root = ?", object_id)
            if row is None:
                return
            self._connection.execute("DELETE FROM tree WHERE root = ?", (object_id,))
            ids = [(each,) for each in object_ids(ObjectTree.FromString(row[0]))]
            self._connection.executemany("UPDATE object SET trees = trees - 1 WHERE id = ?", ids)
            self._connection.executemany("DELETE FROM object WHERE id = ? AND trees < 1", ids)
        blob = blob_id(ObjectTree.FromString(row[0]))
        if blob is not None and blob not in self:
            self.blobs.delete(blob)

    def delete_objects_in_run(self, run_id: int) -> None:
        """Delete all messages of a run, and who belongs to it."""
        for (root,) in self._connection.execute("SELECT root FROM tree WHERE run = ?", (str(run_id),)).fetchall():
            self.delete(root)

    def sweep_blobs(self) -> None:
        """Delete files of blobs that no message has, and that nobody has written to lately."""
        registered = {str(identifier) for (identifier,) in self._connection.execute("SELECT id FROM object")}
        self.blobs.sweep(registered, older_than_s=STALE_S)

    def clear(self) -> None:
        """Delete everything."""
        with self._transaction():
            for table in ("tree", "object", "member"):
                self._connection.execute(f"DELETE FROM {table}")

    def __contains__(self, object_id: str) -> bool:
        """Whether an object was registered."""
        return self._one("SELECT 1 FROM object WHERE id = ?", object_id) is not None

    def __len__(self) -> int:
        """Return how many objects were registered."""
        row = self._one("SELECT count(*) FROM object")
        return int(row[0]) if row else 0

    def set_members(self, federation: str, nodes: set[int]) -> None:
        """Say which nodes belong to a federation."""
        with self._transaction():
            self._connection.execute("DELETE FROM member WHERE run = ?", (federation,))
            self._connection.executemany(
                "INSERT INTO member VALUES (?, ?)", [(federation, str(node)) for node in nodes]
            )

    def members(self, federation: str) -> set[int]:
        """Return which nodes belong to a federation."""
        rows = self._connection.execute("SELECT node FROM member WHERE run = ?", (federation,))
        return {int(node) for (node,) in rows}

    def _available(self, identifier: str) -> bool:
        row = self._one("SELECT content IS NOT NULL FROM object WHERE id = ?", identifier)
        return row is not None and (bool(row[0]) or self.blobs.has(identifier))

    def _one(self, statement: str, *values: str) -> tuple[bytes, ...] | None:
        row: tuple[bytes, ...] | None = self._connection.execute(statement, values).fetchone()
        return row

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:  # SQLite ends it by itself when the disk is full
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def object_ids(tree: ObjectTree) -> list[str]:
    """Return the ids of a tree's objects, each once, children before their parents.

    Raises:
        ValueError: one is not the digits of a SHA-256.
    """
    return list(dict.fromkeys(_ids(tree)))


def _ids(tree: ObjectTree) -> Iterator[str]:
    """Yield the ids of a tree, root last; a tree's depth is bounded by protobuf's own limit on nesting."""
    for child in tree.children:
        yield from _ids(child)
    identifier = tree.object_id
    if len(identifier) != 64 or not set(identifier) <= set("0123456789abcdef"):
        raise ValueError(f"{identifier[:80]!r} is no object's id")
    yield identifier
