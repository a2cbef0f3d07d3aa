"""Files appear whole or not at all, also on a full disk."""

import errno
import os
from pathlib import Path

import pytest

from astrofed.shared.errors import UserMistake
from astrofed.shared.files import CannotWrite, append_line, write_atomically


def full(*_args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "deep" / "file", b"one")
    write_atomically(tmp_path / "deep" / "file", b"two")
    assert (tmp_path / "deep" / "file").read_bytes() == b"two"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old\n")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWrite, match="No space left on device"):
        write_atomically(path, b"new")
    with pytest.raises(CannotWrite, match="No space left on device"):
        append_line(path, b"more")
    assert path.read_bytes() == b"old\n"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
    assert issubclass(CannotWrite, UserMistake)


def test_lines_are_appended(tmp_path: Path) -> None:
    append_line(tmp_path / "lines", b"one")
    append_line(tmp_path / "lines", b"two")
    assert (tmp_path / "lines").read_bytes() == b"one\ntwo\n"
