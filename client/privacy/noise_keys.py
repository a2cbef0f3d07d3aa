"""Keys by which sites share noise: one X25519 key of each site's own (RFC 7748), and what two sites make of theirs.

Only a site's public key ever leaves it, to the other sites' operators, who write it into their policies. What two
sites make of their keys (HKDF, RFC 5869) no coordinator can know, as long as it didn't pass on a key of its own in
place of a site's: keys are to be compared over a channel that is not the coordinator's.
"""

import hmac
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from astrofed.shared.errors import UserMistake
from astrofed.shared.files import cannot_write
from astrofed.shared.keys import KeyUnusable, read_private

NOISE_KEY = "noise.key"  # in a site's home folder
_PURPOSE = b"astrofed shared noise 1\0"


class NotPeers(UserMistake):
    """Noise should be shared with a site whose key isn't known here, or whose key is this site's own."""


def noise_key(home: Path) -> X25519PrivateKey:
    """Return the site's key in its home; the first call makes it, readable by its owner alone.

    Raises:
        KeyUnusable: the file holds something else, or can be read by others.
        CannotWrite: the disk is full or the folder not writable.
    """
    path = home / NOISE_KEY
    if not path.exists():
        _make(path)
    key = read_private(path)
    if not isinstance(key, X25519PrivateKey):
        raise KeyUnusable(f"{path} holds no X25519 key; move it away, and another is made")
    return key


def public_digits(key: X25519PrivateKey) -> str:
    """Return a key's public half as 64 hexadecimal digits, the form in which policies have it."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


@dataclass(frozen=True)
class Peers:
    """A site's own key, and its peers' public ones by name."""

    home: Path
    public: Mapping[str, str] = field(hash=False)

    @cached_property
    def own(self) -> X25519PrivateKey:
        """The site's own key (errors as `noise_key`)."""
        return noise_key(self.home)

    def pair_key(self, peer: str) -> tuple[bytes, bool]:
        """Return what this site and a peer alone know [32 bytes], and which of them adds noise that the other takes.

        Raises:
            NotPeers: the peer's key is not known here, or is none, or this site's own.
        """
        digits, own = self.public.get(peer), public_digits(self.own)
        if digits is None:
            raise NotPeers(
                f"no noise key of {peer!r} is known here; get it from that site's operator (`astrofed client "
                "noise-key` prints it there), and write it into the policy's [[peers]]"
            )
        if digits == own:
            raise NotPeers(f"the noise key of {peer!r} in the policy's [[peers]] is this site's own")
        try:
            secret = self.own.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(digits)))
        except ValueError:
            raise NotPeers(f"the noise key of {peer!r} in the policy's [[peers]] is no X25519 key: {digits}") from None
        both = "".join(sorted((own, digits))).encode()
        return HKDF(SHA256(), 32, salt=None, info=_PURPOSE + both).derive(secret), own < digits

    def check_values(self, names: Iterable[str]) -> list[str]:
        """Return for each peer a line that says which key the two have in common, and nothing else of it.

        Raises:
            NotPeers: see `pair_key`.
        """
        return [f"{name}={hmac.digest(self.pair_key(name)[0], b'check', 'sha256')[:8].hex()}" for name in names]


def _make(path: Path) -> None:
    """Write a new key under a name that it gets only if there is none yet, whoever else makes one at the same time."""
    data = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            path.hardlink_to(unfinished)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        unfinished.unlink(missing_ok=True)
