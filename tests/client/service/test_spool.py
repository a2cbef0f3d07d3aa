"""The spool: what it was given is there after a crash, whole; a full disk loses nothing."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from astrofed.client.service.sealed import Sealed
from astrofed.client.service.spool import BadId, Spool
from astrofed.shared.files import CannotWrite

ID, OTHER = "a" * 64, "b" * 64
CLAIM, REPLY = Sealed(b"claim", b"tree"), Sealed(b"reply", b"tree", {"c" * 64: b"x" * 5000})


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow beyond 1000 bytes meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_was_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.keep_claim(ID, CLAIM)
    spool.keep_claim(OTHER, CLAIM)
    spool.mark_begun(ID)
    assert spool.keep_reply(OTHER, REPLY) is None
    spool.remember_node(7)
    again = Spool(tmp_path)
    assert list(again.claims()) == [(ID, CLAIM)]
    assert list(again.replies()) == [(OTHER, REPLY)]
    assert again.was_begun(ID) and not again.was_begun(OTHER)
    assert (again.waiting, again.node) == (1, 7)
    again.drop_reply(OTHER)
    again.drop_claim(ID)
    assert list(again.claims()) == list(again.replies()) == []
    assert not again.was_begun(ID)


def test_a_claim_whose_reply_was_kept_before_a_crash_is_done_with(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.keep_claim(ID, CLAIM)
    spool.keep_reply(ID, REPLY)
    spool.keep_claim(ID, CLAIM)  # as if the crash had come before it was dropped
    assert list(Spool(tmp_path).claims()) == []


def test_a_full_disk_keeps_the_reply_in_memory(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.keep_claim(ID, CLAIM)
    with full_disk():
        assert isinstance(spool.keep_reply(ID, REPLY), CannotWrite)
        assert list(spool.replies()) == [(ID, REPLY)]
        assert spool.waiting == 1
        assert list(spool.claims()) == []  # not to be done again, as long as the reply is there
    spool.drop_reply(ID)
    assert spool.waiting == 0
    assert not list(tmp_path.glob("*/*"))


def test_bad_files_are_set_aside(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.keep_reply(ID, REPLY)
    path = tmp_path / "replies" / ID
    path.write_bytes(path.read_bytes()[:100])
    (tmp_path / "claims" / f".{ID}.1234.unfinished").write_bytes(b"of a killed process")
    again = Spool(tmp_path)
    assert list(again.replies()) == []
    assert again.waiting == 0
    assert not list((tmp_path / "claims").iterdir())


@pytest.mark.parametrize("name", ["../../../etc/passwd", "", "A" * 64, "a" * 65])
def test_an_id_that_is_no_hash_never_becomes_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadId):
        Spool(tmp_path).keep_claim(name, CLAIM)
