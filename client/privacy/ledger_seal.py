"""The seal of a privacy ledger: a signed note of its last row, in a file beside it, and the key that signs (Ed25519).

The note names the ledger, its file, its last row with that row's hash, and the sum of what was spent. Every row carries
a signature too, so rows beyond the note are known to be ours, and the note may lag behind the file: a process that is
killed between the two loses nothing. What the note says and the file no longer has was taken away.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from astrofed.client.privacy.ledger_rows import Cost
from astrofed.client.privacy.mistakes import LedgerUnsigned, LedgerUnusable
from astrofed.shared.files import flush_folder

HEAD, KEY = "ledger.head", "ledger.key"


@dataclass(frozen=True)
class Head:
    """What is signed: the state of a ledger after one of its rows."""

    ledger: str  # its random name
    inode: int  # of its file; device numbers are no help, they change when a machine starts anew
    row: int  # number of the last row
    hash: str  # of the last row
    totals: dict[Cost, int]

    def to_bytes(self) -> bytes:
        """Return the note that is signed."""
        totals = [[*asdict(cost).values(), steps] for cost, steps in self.totals.items()]
        note = {"ledger": self.ledger, "inode": self.inode, "row": self.row, "hash": self.hash, "totals": totals}
        return json.dumps(note, allow_nan=False).encode()


class Seal:
    """The signed head of one ledger and its key, in a folder that may be another than the ledger's.

    Whoever can write the ledger can't sign for it without the key: a folder of its own, on another disk or for another
    user, keeps them apart.
    """

    def __init__(self, folder: Path) -> None:
        self._head, self._key_file = folder / HEAD, folder / KEY
        self._key: Ed25519PrivateKey | None = None
        self._seen: tuple[bytes, Head] | None = None  # what was checked last

    @property
    def has_key(self) -> bool:
        """Whether there is a key: it is written last of all that makes a ledger."""
        return self._key_file.exists()

    @property
    def public_key(self) -> str:
        """The public key, in hexadecimal digits: what a coordinator may remember a site's ledger by."""
        return self._signer().public_key().public_bytes_raw().hex()

    def create(self, head: Head) -> None:
        """Make a key and sign with it; the key is written last, so that a key without a head is no accident."""
        self._key = Ed25519PrivateKey.generate()
        self.write(head)
        _write(self._key_file, self._key.private_bytes_raw())

    def renew_key(self) -> None:
        """Make another key where there is none that can be used."""
        self._key = None
        try:
            self._signer()
        except (FileNotFoundError, LedgerUnsigned):
            self._key = Ed25519PrivateKey.generate()
            _write(self._key_file, self._key.private_bytes_raw())

    def read(self) -> Head | None:
        """Return the head that was signed last; None where there is none.

        Raises:
            LedgerUnsigned: it was not signed with this key.
            LedgerUnusable: the key can't be read, or others can read it too.
        """
        try:
            data = self._head.read_bytes()
        except FileNotFoundError:
            return None
        if self._seen is None or self._seen[0] != data:
            note, _, signature = data.rpartition(b"\n")
            if not self.signed(note, signature.decode("ascii", "replace")):
                raise LedgerUnsigned(f"{self._head} is not signed with {self._key_file.name}")
            self._seen = data, _parse(note)
        return self._seen[1]

    def write(self, head: Head) -> None:
        """Sign a head and put it in the place of the one before; on return it outlasts a power cut."""
        note = head.to_bytes()
        data = note + b"\n" + self.sign(note).encode()
        _write(self._head, data)
        self._seen = data, head

    def salvage(self) -> Head | None:
        """Return what the note says, whoever signed it; None where it says nothing that can be read."""
        try:
            return _parse(self._head.read_bytes().rpartition(b"\n")[0])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def sign(self, data: bytes) -> str:
        """Return the signature in hexadecimal digits."""
        return self._signer().sign(data).hex()

    def signed(self, data: bytes, signature: str) -> bool:
        """Say whether this is what `sign` returned for that."""
        try:
            self._signer().public_key().verify(bytes.fromhex(signature), data)
        except (InvalidSignature, ValueError):
            return False
        return True

    def _signer(self) -> Ed25519PrivateKey:
        if self._key is None:
            data = self._key_file.read_bytes()
            if self._key_file.stat().st_mode & 0o077:
                raise LedgerUnusable(f"others can read or write {self._key_file}; run `chmod 600 {self._key_file}`")
            try:
                self._key = Ed25519PrivateKey.from_private_bytes(data)
            except ValueError:
                raise LedgerUnsigned(f"{self._key_file} is no key of this software") from None
        return self._key


def _parse(note: bytes) -> Head:
    data = json.loads(note)
    totals = {Cost(*values[:-1]): int(values[-1]) for values in data["totals"]}
    return Head(str(data["ledger"]), int(data["inode"]), int(data["row"]), str(data["hash"]), totals)


def _write(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all; only one process at a time may."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    flush_folder(path.parent)
