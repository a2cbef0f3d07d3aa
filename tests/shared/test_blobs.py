"""Blobs: a file is what its name says or not there, and one that was cut off goes on."""

import hashlib
from pathlib import Path

import pytest

from astrofed.shared.blobs import Blob, Blobs, WrongBlob

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


@pytest.mark.parametrize("name", ["", "ab", "../" + "a" * 61, "A" * 64])
def test_a_name_that_is_no_hash_is_refused(name: str) -> None:
    with pytest.raises(WrongBlob):
        Blob(name, 1)
