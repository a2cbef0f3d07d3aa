"""Who sent a request: the headers by which Flower's nodes sign each one, checked against the registry of sites.

A node signs the time (ECDSA on P-384, SHA-256) and sends its public key along. We accept what Flower accepts, and more
strictly: the key must be enrolled and not revoked, and no signed time is taken twice, so that nothing can be replayed.
"""

import base64
import binascii
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from astrofed.server.service.sites import EnrolledSite, Sites
from astrofed.shared.keys import KeyUnusable, NodePublicKey, fingerprint, node_public_key

PUBLIC_KEY, SIGNATURE, TIMESTAMP = "flwr-public-key", "flwr-signature", "flwr-timestamp"
AHEAD_S, BEHIND_S = 5.0, 305.0  # Flower's own limits
_LONGEST_HEADER = 1024


@dataclass(frozen=True)
class Caller:
    """A site whose request was signed by its own key."""

    site: EnrolledSite
    signed: str  # key and time: never the same twice


class Unauthentic(Exception):
    """A request that is not by an enrolled site; `who` is what it claims or what it was found to be."""

    def __init__(self, reason: str, who: str, public: str = "Invalid SuperNode authentication") -> None:
        super().__init__(reason)
        self.reason, self.who, self.public = reason, who, public


class SignatureChecker:
    """Checks the headers of requests."""

    def __init__(self, sites: Sites, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._sites, self._clock = sites, clock
        self._keys: OrderedDict[str, tuple[NodePublicKey, str]] = OrderedDict()  # by what stands in the header

    def check(self, headers: Mapping[str, str]) -> Caller:
        """Return whose request it is.

        Raises:
            Unauthentic: the headers are missing or malformed, the key is unknown or revoked, the time is off, or the
                signature doesn't match.
        """
        given = {name: headers.get(name, "") for name in (PUBLIC_KEY, SIGNATURE, TIMESTAMP)}
        if not all(given.values()):
            raise Unauthentic("no signature", "nobody")
        if any(len(value) > _LONGEST_HEADER for value in given.values()):
            raise Unauthentic("headers too long", "nobody")
        key, digest = self._key(given[PUBLIC_KEY])
        site = self._sites.by_key(digest)
        if site is None:
            raise Unauthentic("key not enrolled", f"key {digest[:16]}")
        if site.revoked is not None:
            raise Unauthentic("key revoked", site.name, "this node's key was revoked by the coordinator")
        self._check_time(given[TIMESTAMP], site.name)
        try:
            signature = base64.b64decode(given[SIGNATURE], validate=True)
            key.verify(signature, given[TIMESTAMP].encode("ascii"), ec.ECDSA(hashes.SHA256()))
        except (binascii.Error, UnicodeError, ValueError, InvalidSignature):
            raise Unauthentic("signature by another key", f"somebody as {site.name}") from None
        return Caller(site, f"{digest} {given[TIMESTAMP]}")

    def _key(self, header: str) -> tuple[NodePublicKey, str]:
        """Return a key and its fingerprint; only enrolled keys are remembered, so a stranger can't fill the memory."""
        if header in self._keys:
            self._keys.move_to_end(header)
            return self._keys[header]
        try:
            key = node_public_key(base64.b64decode(header, validate=True).decode("ascii"))
        except (binascii.Error, UnicodeError, ValueError, KeyUnusable):
            claimed = hashlib.sha256(header.encode(errors="replace")).hexdigest()[:16]
            raise Unauthentic("malformed key", f"header {claimed}") from None
        found = key, fingerprint(key)
        if self._sites.by_key(found[1]) is not None:
            self._keys[header] = found
            if len(self._keys) > 4096:
                self._keys.popitem(last=False)
        return found

    def _check_time(self, text: str, site: str) -> None:
        try:
            age = (self._clock() - datetime.fromisoformat(text)).total_seconds()
        except (ValueError, TypeError, OverflowError):
            raise Unauthentic("malformed time", f"somebody as {site}") from None
        if not -AHEAD_S < age < BEHIND_S:
            way = f"{-age:.0f} s ahead of" if age < 0 else f"{age:.0f} s behind"
            raise Unauthentic(
                f"clock {way} the server's",
                f"somebody as {site}",
                f"the node's clock is {way} the server's; set it right",
            )


class Replays:
    """Remembers what was signed, for as long as it would be accepted; each is taken once."""

    def __init__(self, clock: Callable[[], float], capacity: int = 500_000) -> None:
        self._clock, self._capacity = clock, capacity
        self._seen: OrderedDict[str, float] = OrderedDict()

    def is_new(self, signed: str) -> bool:
        """Whether this is seen for the first time."""
        now = self._clock()
        while self._seen and (len(self._seen) > self._capacity or next(iter(self._seen.values())) < now):
            self._seen.popitem(last=False)
        if signed in self._seen:
            return False
        self._seen[signed] = now + AHEAD_S + BEHIND_S
        return True
