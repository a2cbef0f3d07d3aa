"""Files appear whole or not at all, also on a full disk."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from astrofed.shared.errors import UserMistake
from astrofed.shared.files import CannotWrite, InUse, alone_in, append_line, write_atomically


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


def test_one_process_at_a_time_is_in_a_folder(tmp_path: Path) -> None:
    held = "from pathlib import Path; from astrofed.shared.files import alone_in; import sys\n"
    held += "with alone_in(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", held, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        with pytest.raises(InUse, match="another process writes into"), alone_in(tmp_path / "run"):
            pass
        other.kill()
        other.wait()
        with alone_in(tmp_path / "run"):  # who dies lets it go
            pass
    with pytest.raises(CannotWrite), alone_in(Path("/proc/nowhere")):
        pass
