"""A full disk ends none of the service's processes: what can't be written is said once and tried again."""

import sqlite3
from pathlib import Path

import pytest
from flwr.proto.message_pb2 import ObjectTree

from astrofed.server.service.gateway import Counts
from astrofed.server.service.home import ServerHome
from astrofed.server.service.link_objects import MessageObjects
from astrofed.server.service.supervisor import Supervisor
from astrofed.shared.files import write_atomically


def test_the_supervisor_goes_on_and_says_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    supervisor = Supervisor(ServerHome(tmp_path), said.append)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(supervisor, "_look_after_children", lambda: None)
    monkeypatch.setattr(supervisor, "_look_after_workers", lambda _: write_atomically(tmp_path / "file" / "x", b""))
    for _ in range(3):
        supervisor._look_after_all(1)
    assert len(said) == 1 and "can't be written" in said[0] and "tried again" in said[0]


def test_the_gateway_goes_on_without_its_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    Counts(tmp_path / "file" / "gateway.json").write()
    assert "can't be written" in caplog.text


def test_a_message_for_which_there_is_no_room_leaves_nothing(tmp_path: Path) -> None:
    objects = MessageObjects(tmp_path / "objects.sqlite")
    objects._connection.execute("PRAGMA max_page_count = 12")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        for number in range(1000):
            objects.preregister(1, ObjectTree(object_id=f"{number:064x}"))
    held = len(objects)
    assert not objects._connection.in_transaction
    assert number >= held and f"{held:064x}" not in objects
    objects.close()
