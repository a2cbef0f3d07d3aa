"""Files that appear whole or not at all."""

import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from astrofed.shared.errors import UserMistake


class InUse(UserMistake):
    """Another process writes into a folder."""


class CannotWrite(UserMistake):
    """A file can't be written: the disk is full, or the folder is not writable."""


def write_atomically(path: Path, data: bytes, *, flush: bool = True, private: bool = False) -> None:
    """Write a file under a temporary name and rename it; a reader sees the old file or the new, whoever is killed.

    With `flush` it also outlasts a power cut from now on; that takes milliseconds on most disks. A `private` file can
    be read by its owner alone (mode 0600) at every moment.

    Raises:
        CannotWrite: the disk is full or the folder not writable; what was there stays, nothing is left behind.
    """
    write_pieces_atomically(path, (data,), flush=flush, private=private)


def write_pieces_atomically(
    path: Path, pieces: Iterable[bytes | memoryview], *, flush: bool = True, private: bool = False
) -> None:
    """Write a file of pieces, one after the other, as `write_atomically` does."""
    unfinished = path.parent / f".{path.name}.{secrets.token_hex(4)}.unfinished"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "xb", opener=_private_opener if private else None) as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            if flush:
                os.fsync(file.fileno())
        unfinished.replace(path)
        if flush:
            flush_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(NotADirectoryError):  # then it was never begun
            unfinished.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes that ask so out of a folder, which is made if it isn't there; who dies lets it go.

    Raises:
        InUse: another one is in it.
        CannotWrite: it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InUse(f"another process writes into {folder}; wait for it, stop it, or give another folder") from None
    try:
        yield
    finally:
        os.close(descriptor)


def torn_files(folder: Path) -> set[Path]:
    """Return what processes that were killed left of the files that they were writing into a folder atomically."""
    return set(folder.glob(".*.unfinished"))


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def append_line(path: Path, line: bytes, *, flush: bool = True) -> None:
    """Append one line and its line break; after a failure the file is as it was before. For `flush` see above.

    Raises:
        CannotWrite: see `write_atomically`.
    """
    try:
        with path.open("ab") as file:
            size = file.tell()
            try:
                file.write(line + b"\n")
                file.flush()
                if flush:
                    os.fsync(file.fileno())
            except OSError:
                os.truncate(path, size)
                raise
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> CannotWrite:
    """Return the error that says what could not be written, why, and what to do."""
    return CannotWrite(
        f"{path} can't be written: {error.strerror or error}; free space or choose another folder (--out)"
    )


def flush_folder(folder: Path) -> None:
    """See to it that the files in a folder are still found there after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
