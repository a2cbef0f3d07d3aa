"""Large contents as files of a folder, each named by its SHA-256: whole or not there, and once for all readers.

What is still on its way has a name of its own, so that it can go on where it was cut off; only a file whose bytes have
the right hash gets its name.
"""

import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from astrofed.shared.array_forms import OpenFile
from astrofed.shared.errors import AstrofedError
from astrofed.shared.files import cannot_write
from astrofed.shared.npy import Bytes

STEP = 1 << 20
"""Bytes that are read, hashed or sent at a time."""
BLOB_HEADER, RUN_HEADER, MESSAGE_HEADER = "astrofed-blob", "astrofed-run", "astrofed-message"
SIZE_HEADER, START_HEADER = "astrofed-size", "astrofed-start"
PULL_BLOB, PUSH_BLOB = "/v1/fleet/pull-blob", "/v1/fleet/push-blob"
"""Requests for a blob: paths, and headers for its id, the run and message that have it, its size, the first byte."""
NO_ROOM, WRONG_BYTES = 507, 422
"""Answers to who sends one: there is no room for it; it has other bytes than its name says, and none are kept."""
UNFINISHED = ".unfinished"
_ID, _WRITER = re.compile(r"[0-9a-f]{64}"), re.compile(r"\.(\d{1,9})-[0-9a-f]+\.unfinished")


class WrongBlob(AstrofedError):
    """A blob that is missing, or whose bytes are not those that its name says."""


@dataclass(frozen=True)
class Blob:
    """A content by its name."""

    id: str  # SHA-256, in hexadecimal
    size: int  # bytes

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id) or self.size < 0:
            raise WrongBlob(f"{self.id[:80]!r} of {self.size} bytes can't be a blob: its name is a SHA-256")


class Blobs:
    """The contents in a folder, for the owner's eyes alone (mode 0600)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._seals: dict[str, int] = {}

    def write(self, pieces: Iterable[Bytes], *, flush: bool = False) -> Blob:
        """Keep a content that comes in pieces; with `flush` it outlasts a power cut.

        Raises:
            CannotWrite: the disk is full; nothing is left behind.
        """
        unfinished = self.folder / f".{os.getpid()}-{secrets.token_hex(8)}{UNFINISHED}"
        digest, size = hashlib.sha256(), 0
        try:
            with open(unfinished, "xb", buffering=0, opener=_private) as file:
                for piece in pieces:
                    for part in _steps(piece):
                        digest.update(part)
                        write_all(file.fileno(), part, size)
                        size += len(part)
                if flush:
                    os.fsync(file.fileno())
            blob = Blob(digest.hexdigest(), size)
            unfinished.replace(self._path(blob.id))
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        finally:
            unfinished.unlink(missing_ok=True)
        return blob

    def has(self, identifier: str) -> bool:
        """Whether a content is wholly there."""
        return self._path(identifier).is_file()

    def open(self, blob: Blob) -> OpenFile:
        """Return a content's file.

        Raises:
            WrongBlob: it is not there, or of another size.
        """
        try:
            file = OpenFile(self._path(blob.id))
        except OSError as error:
            raise WrongBlob(f"blob {blob.id[:12]}… is not there: {error.strerror}") from error
        if file.size != blob.size:
            raise WrongBlob(f"blob {blob.id[:12]}… has {file.size} bytes, not {blob.size}")
        return file

    def seal(self, identifier: str) -> int | None:
        """Return by which time of the file's (ctime, which no write leaves as it was) a content has been found right.

        None: it was not looked at by this process.
        """
        return self._seals.get(identifier)

    def check(self, blob: Blob, seal: int | None = None) -> None:
        """Look whether a content that lies here is still what its name says; if not, it is deleted.

        It is hashed unless it has the seal that was given, or this folder's own, for large ones take seconds.

        Raises:
            WrongBlob: it is not, or not there.
        """
        path = self._path(blob.id)
        try:
            with path.open("rb", buffering=0) as file:
                changed = os.fstat(file.fileno()).st_ctime_ns
                if changed in (seal, self.seal(blob.id)):
                    return
                found, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
        except OSError as error:
            raise WrongBlob(f"blob {blob.id[:12]}… can't be read: {error.strerror}") from error
        if (found, size) != (blob.id, blob.size):
            path.unlink(missing_ok=True)
            raise WrongBlob(f"blob {blob.id[:12]}… has other bytes on this disk than its name says; it is deleted")
        self._seals[blob.id] = changed

    def part(self, blob: Blob, owner: str = "") -> Path:
        """Where a content that is on its way lies, for each who sends it apart."""
        return self.folder / f"{blob.id}.{owner}.part"

    def finish(self, blob: Blob, owner: str = "", *, flush: bool = False) -> None:
        """Give what has wholly come its name, if it is what that says; otherwise it is deleted.

        Raises:
            WrongBlob: it is something else.
        """
        part = self.part(blob, owner)
        try:
            with part.open("rb", buffering=0) as file:
                found, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
                if flush:
                    os.fsync(file.fileno())
        except OSError as error:
            raise WrongBlob(f"blob {blob.id[:12]}… has not come: {error.strerror}") from error
        if (found, size) != (blob.id, blob.size):
            part.unlink(missing_ok=True)
            raise WrongBlob(f"blob {blob.id[:12]}… came with other bytes than its name says; they are deleted")
        part.replace(path := self._path(blob.id))
        self._seals[blob.id] = path.stat().st_ctime_ns

    def delete(self, identifier: str) -> None:
        """Delete a content, whole or on its way; who has its file open can still read it."""
        self._seals.pop(identifier, None)
        for path in (self._path(identifier), *self.folder.glob(f"{identifier}.*.part")):
            path.unlink(missing_ok=True)

    def sweep(self, keep: Collection[str], older_than_s: float = 0.0) -> None:
        """Delete all files but those of contents to keep, whole or on their way, if none changed for so long.

        What a process was writing when it was killed goes at once.
        """
        before = time.time() - older_than_s
        for path in self.folder.iterdir():
            try:
                if _is_orphan(path.name) or (
                    path.name.partition(".")[0] not in keep and path.stat().st_mtime <= before
                ):
                    path.unlink()
                    self._seals.pop(path.name, None)
            except FileNotFoundError:
                continue

    def _path(self, identifier: str) -> Path:
        return self.folder / identifier


def write_all(descriptor: int, data: Bytes, start: int) -> None:
    """Write bytes into a file at a place (errors as `os.pwrite`)."""
    while len(data):
        count = os.pwrite(descriptor, data, start)
        data, start = memoryview(data)[count:], start + count


def open_part(path: Path) -> int:
    """Open a file for a content on its way; return its descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def room_for(path: Path, size: int) -> None:
    """Look whether there is room for the rest of a file that is to have so many bytes, so that none is filled in vain.

    Raises:
        OSError: it has not (ENOSPC), as far as the disk says.
    """
    disk, come = os.statvfs(path.parent), 0
    with suppress(FileNotFoundError):
        come = path.stat().st_size
    if disk.f_blocks and disk.f_bavail * disk.f_frsize < size - come:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_orphan(name: str) -> bool:
    """Whether a file was being written by a process of this machine that is not there any more."""
    found = _WRITER.fullmatch(name)
    return found is not None and not Path(f"/proc/{found[1]}").exists() and Path("/proc/self").exists()


def _steps(piece: Bytes) -> Iterable[memoryview]:
    whole = memoryview(piece)
    return (whole[start : start + STEP] for start in range(0, len(whole), STEP))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
