"""Blobs: a file is what its name says or not there, and one that was cut off goes on."""

import errno
import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from astrofed.shared import blobs as module
from astrofed.shared.blobs import Blob, Blobs, WrongBlob, room_for, write_all
from astrofed.shared.files import CannotWrite

CONTENT = b"some" * 1000
NAME = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


def names(blobs: Blobs) -> set[str]:
    return {path.name for path in blobs.folder.iterdir()}


def test_a_content_lies_under_its_hash_for_the_owner_alone(blobs: Blobs) -> None:
    blob = blobs.write([CONTENT[:1500], memoryview(CONTENT)[1500:]], flush=True)
    assert (blob.id, blob.size, names(blobs)) == (NAME, len(CONTENT), {NAME})
    path = blobs.folder / NAME
    assert path.read_bytes() == CONTENT and path.stat().st_mode & 0o777 == 0o600
    assert blobs.has(NAME) and blobs.write([CONTENT]) == blob
    file = blobs.open(blob)
    blobs.delete(NAME)
    assert file.size == len(CONTENT) and not blobs.has(NAME)


def test_what_has_come_in_parts_gets_its_name_only_if_it_is_right(blobs: Blobs) -> None:
    blob = Blob(NAME, len(CONTENT))
    for wrong in (CONTENT[:-1], CONTENT[:-1] + b"!", CONTENT + b"!"):
        blobs.part(blob, "7").write_bytes(wrong)
        with pytest.raises(WrongBlob, match="other bytes"):
            blobs.finish(blob, "7")
        assert names(blobs) == set()
    with pytest.raises(WrongBlob, match="has not come"):
        blobs.finish(blob, "7")
    blobs.part(blob, "7").write_bytes(CONTENT)
    blobs.finish(blob, "7")
    assert names(blobs) == {NAME}
    with pytest.raises(WrongBlob, match="not 5"):
        blobs.open(Blob(NAME, 5))


def test_a_failure_leaves_nothing_behind(blobs: Blobs) -> None:
    def failing() -> object:
        yield CONTENT
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        blobs.write(failing())  # type: ignore[arg-type]
    assert names(blobs) == set()


def test_only_what_is_needed_is_kept(blobs: Blobs) -> None:
    kept, other = blobs.write([CONTENT]), blobs.write([b"other"])
    blobs.part(other, "7").write_bytes(b"o")
    blobs.sweep({kept.id}, older_than_s=60)
    assert len(names(blobs)) == 3
    blobs.sweep({kept.id})
    assert names(blobs) == {kept.id}


def test_what_a_killed_process_left_unfinished_goes_at_once(blobs: Blobs) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    for writer in (process.pid, os.getpid()):
        (blobs.folder / f".{writer}-0a1b.unfinished").write_bytes(b"so")
    blobs.sweep((), older_than_s=60)
    assert names(blobs) == {f".{os.getpid()}-0a1b.unfinished"}


def test_a_disk_that_forgets_is_noticed(blobs: Blobs) -> None:
    blob, path = blobs.write([CONTENT]), blobs.folder / NAME
    assert blobs.seal(NAME) is None
    blobs.check(blob)
    seal = blobs.seal(NAME)
    assert seal == path.stat().st_ctime_ns
    path.write_bytes(bytes([CONTENT[0] ^ 1]) + CONTENT[1:])
    with pytest.raises(WrongBlob, match="other bytes on this disk"):
        blobs.check(blob, seal)
    assert names(blobs) == set()
    with pytest.raises(WrongBlob, match="can't be read: No such file"):
        blobs.check(blob)


def test_what_was_found_right_is_not_hashed_again(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = Blob(NAME, len(CONTENT))
    blobs.part(blob).write_bytes(CONTENT)
    blobs.finish(blob)
    other, seal = Blobs(blobs.folder), blobs.seal(NAME)
    monkeypatch.delattr(hashlib, "file_digest")
    blobs.check(blob)
    other.check(blob, seal)
    with pytest.raises(AttributeError):
        other.check(blob)
    blobs.delete(NAME)
    assert blobs.seal(NAME) is None


def test_a_full_disk_leaves_nothing_of_what_is_written(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: memoryview, at: int) -> None:
        if at >= 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(file, data, at)

    monkeypatch.setattr(module, "write_all", full)
    with pytest.raises(CannotWrite, match="blobs can't be written: No space left on device"):
        blobs.write([CONTENT[:1000], CONTENT[1000:]])
    assert names(blobs) == set()


def test_room_is_looked_for_beforehand(blobs: Blobs) -> None:
    part = blobs.folder / "part"
    room_for(part, 1000)
    with pytest.raises(OSError, match="No space left"):
        room_for(part, 2**60)
    os.truncate(os.open(part, os.O_RDWR | os.O_CREAT), 2**30)
    room_for(part, 2**30)  # all of it is there


@pytest.mark.parametrize("name", ["", "ab", "../" + "a" * 61, "A" * 64])
def test_a_name_that_is_no_hash_is_refused(name: str) -> None:
    with pytest.raises(WrongBlob):
        Blob(name, 1)
