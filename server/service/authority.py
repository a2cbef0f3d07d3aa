"""The server's own certificate authority: it vouches for the gateway and for nothing else (X.509, RFC 5280).

Sites trust this authority alone, by its certificate in their welcome, so no public authority and no name service has to
be trusted. The gateway's certificate is renewed from the same authority without the sites noticing.
"""

import ipaddress
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from astrofed.shared.errors import UserMistake
from astrofed.shared.files import write_atomically
from astrofed.shared.keys import (
    fingerprint,
    new_node_key,
    new_plan_key,
    private_pem,
    public_pem,
    read_node_key,
    read_plan_key,
    write_key,
)

CA_DAYS, SERVER_DAYS, RENEW_WITHIN_DAYS = 3650, 397, 30
_BEFORE = timedelta(minutes=5)  # a site's clock may be behind


class AuthorityUnusable(UserMistake):
    """The authority's files are missing or damaged."""


class Authority:
    """The files of the authority, the gateway's certificate, and the key that signs plans, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._ca_key, self._ca = folder / "ca.key", folder / "ca.crt"
        self.server_key, self.server_certificate = folder / "server.key", folder / "server.crt"
        self._plan_key = folder / "plan.key"

    @property
    def exists(self) -> bool:
        """Whether there is an authority."""
        return self._ca_key.exists() or self._ca.exists()

    def create(self, coordinator: str) -> None:
        """Make what is missing of the authority and the plan key; what is there stays."""
        if not self._plan_key.exists():
            write_key(self._plan_key, new_plan_key())
        if self._ca.exists():
            return
        make_ca(self._ca_key, self._ca, coordinator)

    def issue(self, names: Sequence[str]) -> None:
        """Issue a new certificate with a new key to the gateway, for these names and addresses.

        Key and certificate are in one file each; the certificate's file holds the key's fingerprint by its nature, and
        a gateway that finds them not matching keeps the pair that it has.
        """
        ca_key, ca = read_node_key(self._ca_key), self.certificate
        key = new_node_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
        certificate = (
            _builder(subject, ca.subject, key.public_key(), SERVER_DAYS)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            .sign(ca_key, hashes.SHA384())
        )
        write_atomically(self.server_key, private_pem(key), private=True)
        write_atomically(self.server_certificate, certificate.public_bytes(Encoding.PEM))

    def needs_renewal(self, names: Sequence[str]) -> str | None:
        """Return why the gateway's certificate should be issued anew, or None."""
        if not self.server_certificate.exists() or not self.server_key.exists():
            return "there is none"
        certificate = _load(self.server_certificate)
        left = certificate.not_valid_after_utc - datetime.now(UTC)
        if left < timedelta(days=RENEW_WITHIN_DAYS):
            return f"it is valid for {left.days} more days"
        if set(_names(certificate)) != set(names):
            return f"it is for {', '.join(_names(certificate))}"
        if fingerprint(read_node_key(self.server_key).public_key()) != fingerprint(certificate.public_key()):  # type: ignore[arg-type]
            return "its key is another"
        return None

    @property
    def certificate(self) -> x509.Certificate:
        """The authority's own certificate."""
        return _load(self._ca)

    @property
    def certificate_pem(self) -> str:
        """The authority's own certificate as PEM, as it stands in welcomes."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def valid_until(self) -> datetime:
        """Until when the gateway's certificate is valid."""
        return _load(self.server_certificate).not_valid_after_utc

    @property
    def plan_key(self) -> Ed25519PrivateKey:
        """The key that signs plans."""
        return read_plan_key(self._plan_key)

    @property
    def plan_key_pem(self) -> str:
        """The public half of it, as it stands in welcomes."""
        return public_pem(self.plan_key.public_key())

    def tls_context(self) -> ssl.SSLContext:
        """Return the gateway's side of TLS: version 1.3 and nothing older."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.load_into(context)
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Use the certificate that lies there now for connections from now on.

        Raises:
            AuthorityUnusable: certificate or key are missing or don't match.
        """
        try:
            context.load_cert_chain(self.server_certificate, self.server_key)
        except (OSError, ssl.SSLError) as error:
            raise AuthorityUnusable(
                f"{self.server_certificate} can't be used ({error}); issue another with `astrofed server renew --force`"
            ) from error


def make_ca(key_file: Path, certificate_file: Path, coordinator: str) -> None:
    """Make a certificate authority's own certificate, and its key unless that is there."""
    if not key_file.exists():
        write_key(key_file, new_node_key())
    key = read_node_key(key_file)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{coordinator[:40]} astrofed CA")])
    certificate = (
        _builder(name, name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    write_atomically(certificate_file, certificate.public_bytes(Encoding.PEM))


def _load(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise AuthorityUnusable(
            f"{path} can't be read as a certificate; restore it from a backup, or run `astrofed server init` again"
        ) from error


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer, subject, key, x509.random_serial_number(), now - _BEFORE, now + timedelta(days=days)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]
