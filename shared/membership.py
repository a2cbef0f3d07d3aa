"""The two files by which a site joins a federation: its enrolment request, and the coordinator's welcome.

Both are JSON of one version. A request says who asks and what data it could train on (names, fingerprints and counts,
never data), and is signed by the node key that it holds: who sends another's public key can't sign for it. A welcome
tells the site whom to trust (a CA certificate, the key that signs plans) and where to call. Neither is secret, but both
must come from whom they say: people compare fingerprints.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509 import load_pem_x509_certificates
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from astrofed.shared.errors import UserMistake
from astrofed.shared.explain import explain
from astrofed.shared.keys import (
    KeyUnusable,
    NodeKey,
    fingerprint,
    node_public_key,
    plan_public_key,
    public_pem,
)
from astrofed.shared.plan import Name

VERSION = 1
LARGEST_FILE = 256 * 1024  # bytes; what is longer is no file of ours
_REQUEST_DOMAIN, _WELCOME_DOMAIN = b"astrofed enrolment request 1\0", b"astrofed welcome 1\0"
Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileT = TypeVar("FileT", bound="_File")


class NotAMembershipFile(UserMistake):
    """A file that should be an enrolment request or a welcome is none, was changed, or is of another version."""


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


class OfferedDataset(BaseModel):
    """A dataset that a site could train on: a name, a fingerprint and counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    fingerprint: Digest
    unit: Text  # what one privacy unit is: a planet, a world
    units: Annotated[int, Field(ge=1)]


class EnrolmentRequest(_File):
    """A site asks to join; made by `astrofed client init`."""

    kind: Literal["astrofed enrolment request"] = "astrofed enrolment request"
    version: Literal[1] = 1
    name: Name
    contact: Text
    public_key: str
    datasets: tuple[OfferedDataset, ...]
    time: datetime
    signature: str = ""

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the site's node key."""
        return fingerprint(node_public_key(self.public_key))

    def signed_bytes(self) -> bytes:
        """Return what is signed: everything but the signature, in one canonical form."""
        return _canonical(_REQUEST_DOMAIN, self)


class Older(BaseModel):
    """A key or certificate that another replaces, and until when it is trusted beside the new one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pem: str
    until: datetime


class Welcome(_File):
    """The coordinator's answer to a request, made by `astrofed server enroll`, or a newer one, by `server rotate`."""

    kind: Literal["astrofed welcome"] = "astrofed welcome"
    version: Literal[1] = 1
    coordinator: Text
    address: Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$")]  # host:port
    ca_certificate: str  # PEM, the only authority that vouches for the server
    plan_key: str  # PEM, Ed25519: plans that it did not sign are refused
    site: Name
    node_fingerprint: Digest  # of the site's node key: a welcome for another key is of no use
    federations: tuple[Name, ...]
    time: datetime
    older_ca_certificate: Older | None = None
    older_plan_key: Older | None = None
    signature: str = ""  # by the plan key with which the coordinator signed when it wrote this

    def plan_keys(self, now: float) -> list[Ed25519PublicKey]:
        """Return the keys whose plans are trusted at a time (seconds since 1970), the newest first."""
        older = _still(self.older_plan_key, now)
        return [plan_public_key(pem) for pem in (self.plan_key, older) if pem]

    def ca_certificates(self, now: float) -> str:
        """Return the authorities that may vouch for the server at a time, as one text of PEM."""
        return self.ca_certificate + _still(self.older_ca_certificate, now)

    def signed(self, key: Ed25519PrivateKey) -> "Welcome":
        """Return the same with a signature: a site that trusts the key takes it without comparing fingerprints."""
        return self.model_copy(update={"signature": key.sign(self.signed_bytes()).hex()})

    def is_signed_by(self, keys: Iterable[Ed25519PublicKey]) -> bool:
        """Whether one of these keys signed it as it stands."""
        for key in keys:
            with suppress(InvalidSignature, ValueError):
                key.verify(bytes.fromhex(self.signature), self.signed_bytes())
                return True
        return False

    def signed_bytes(self) -> bytes:
        """Return what is signed: everything but the signature, in one canonical form."""
        return _canonical(_WELCOME_DOMAIN, self)

    @property
    def host(self) -> str:
        """The host's name or address, without brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port."""
        return int(self.address.rpartition(":")[2])

    @field_validator("address")
    @classmethod
    def _possible_port(cls, value: str) -> str:
        if not 0 < int(value.rpartition(":")[2]) < 65536:
            raise ValueError("the port must lie between 1 and 65535")
        return value


def _canonical(domain: bytes, file: _File) -> bytes:
    data = file.model_dump(mode="json", exclude={"signature"})
    return domain + json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def _still(older: Older | None, now: float) -> str:
    """Return what is still trusted of something older."""
    return older.pem if older is not None and now < older.until.timestamp() else ""


def make_request(name: str, contact: str, datasets: Sequence[OfferedDataset], key: NodeKey) -> EnrolmentRequest:
    """Return a site's enrolment request, signed with its node key.

    Raises:
        NotAMembershipFile: the name or the contact can't stand in a request.
    """
    try:
        request = EnrolmentRequest(
            name=name,
            contact=contact,
            public_key=public_pem(key.public_key()),
            datasets=tuple(datasets),
            time=datetime.now(UTC).replace(microsecond=0),
        )
    except ValidationError as error:
        raise NotAMembershipFile("the request: " + explain(error, EnrolmentRequest)) from None
    signature = key.sign(request.signed_bytes(), ec.ECDSA(hashes.SHA384()))
    return request.model_copy(update={"signature": signature.hex()})


def read_request(path: Path) -> EnrolmentRequest:
    """Return the enrolment request in a file, its signature checked.

    Raises:
        NotAMembershipFile: the file is missing, is no request, or its signature doesn't match.
    """
    request = _read(path, EnrolmentRequest)
    try:
        key = node_public_key(request.public_key)
        key.verify(bytes.fromhex(request.signature), request.signed_bytes(), ec.ECDSA(hashes.SHA384()))
    except KeyUnusable as error:
        raise NotAMembershipFile(f"{path}: {error}") from error
    except (InvalidSignature, ValueError) as error:
        raise NotAMembershipFile(
            f"{path}: the signature is not by the key that the request holds; it was changed on its way, ask the site "
            "to send it again"
        ) from error
    return request


def read_welcome(path: Path) -> Welcome:
    """Return the welcome in a file, its certificate and keys checked for form.

    Raises:
        NotAMembershipFile: the file is missing or is no welcome.
    """
    welcome = _read(path, Welcome)
    try:
        welcome.plan_keys(0.0)
        load_pem_x509_certificates(welcome.ca_certificates(0.0).encode())
    except KeyUnusable as error:
        raise NotAMembershipFile(f"{path}: {error}") from error
    except ValueError as error:
        raise NotAMembershipFile(f"{path}: ca_certificate is no certificate in PEM") from error
    return welcome


def _read(path: Path, kind: type[FileT]) -> FileT:
    wanted = str(kind.model_fields["kind"].default).removeprefix("astrofed ")
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
        if len(text) > LARGEST_FILE:
            raise NotAMembershipFile(f"{path} is longer than {LARGEST_FILE} bytes; that is no {wanted}")
        data = json.loads(text)
    except FileNotFoundError:
        raise NotAMembershipFile(f"{path} does not exist; give the path of the {wanted}") from None
    except OSError as error:
        raise NotAMembershipFile(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise NotAMembershipFile(f"{path} is no {wanted}: it is not JSON") from error
    if not isinstance(data, dict) or data.get("kind") != kind.model_fields["kind"].default:
        found = data.get("kind") if isinstance(data, dict) else type(data).__name__
        raise NotAMembershipFile(f"{path} is no {wanted}; its kind is {str(found)[:60]!r}")
    if data.get("version") != VERSION:
        raise NotAMembershipFile(
            f"{path} is of version {str(data.get('version'))[:20]}; this astrofed reads version {VERSION}: "
            "both sides need the same release"
        )
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise NotAMembershipFile(f"{path}: " + explain(error, kind)) from None
