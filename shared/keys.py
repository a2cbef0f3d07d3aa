"""Keys and how people compare them: P-384 for nodes (what Flower's SuperNode authentication takes), Ed25519 for plans.

Private keys lie in PEM files (PKCS #8) that only their owner may read. A key's fingerprint is the SHA-256 of its public
half in DER (SubjectPublicKeyInfo, RFC 5280); people compare the first half of it in groups of four digits, 128 bits.
"""

import hashlib
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from astrofed.shared.errors import UserMistake
from astrofed.shared.files import write_atomically

NodeKey = ec.EllipticCurvePrivateKey
NodePublicKey = ec.EllipticCurvePublicKey
PrivateKey = NodeKey | Ed25519PrivateKey
PublicKey = NodePublicKey | Ed25519PublicKey


class KeyUnusable(UserMistake):
    """A key file is missing, is not of the kind that is needed, or can be read by others."""


def new_node_key() -> NodeKey:
    """Return a new key for a site's node."""
    return ec.generate_private_key(ec.SECP384R1())


def new_plan_key() -> Ed25519PrivateKey:
    """Return a new key for a coordinator's plans."""
    return Ed25519PrivateKey.generate()


def private_pem(key: PrivateKey) -> bytes:
    """Return a private key as PEM (PKCS #8, not encrypted)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(key: PublicKey) -> str:
    """Return a public key as PEM (SubjectPublicKeyInfo), the form in which Flower compares node keys."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def write_key(path: Path, key: PrivateKey) -> None:
    """Write a private key; nobody but its owner can read the file at any moment.

    Raises:
        KeyUnusable: there is a file of that name; keys are never overwritten.
        CannotWrite: the disk is full or the folder not writable.
    """
    if path.exists():
        raise KeyUnusable(f"{path} exists; a key is never overwritten: move it away first, if you want another")
    write_atomically(path, private_pem(key), private=True)


def read_node_key(path: Path) -> NodeKey:
    """Return the node key in a file.

    Raises:
        KeyUnusable: it is missing, not a P-384 key, or can be read by others.
    """
    key = read_private(path)
    if not isinstance(key, NodeKey) or not isinstance(key.curve, ec.SECP384R1):
        raise KeyUnusable(f"{path} holds no P-384 key; node keys are made by `astrofed client init`")
    return key


def read_plan_key(path: Path) -> Ed25519PrivateKey:
    """Return the key in a file that signs plans.

    Raises:
        KeyUnusable: it is missing, not an Ed25519 key, or can be read by others.
    """
    key = read_private(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyUnusable(f"{path} holds no Ed25519 key; plan keys are made by `astrofed server init`")
    return key


def node_public_key(pem: str, where: str = "the node's public key") -> NodePublicKey:
    """Return a node's public key from PEM; `where` names it in errors.

    Raises:
        KeyUnusable: it is no P-384 public key.
    """
    key = _read_public(pem, where)
    if not isinstance(key, NodePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise KeyUnusable(f"{where} is not on the curve P-384, the only one that nodes use")
    return key


def plan_public_key(pem: str, where: str = "the plan key") -> Ed25519PublicKey:
    """Return the key that verifies plans from PEM; `where` names it in errors.

    Raises:
        KeyUnusable: it is no Ed25519 public key.
    """
    key = _read_public(pem, where)
    if not isinstance(key, Ed25519PublicKey):
        raise KeyUnusable(f"{where} is no Ed25519 public key, the only kind that signs plans")
    return key


def fingerprint(key: PublicKey) -> str:
    """Return the SHA-256 of a public key's DER form, 64 hexadecimal digits."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def grouped(digest: str) -> str:
    """Return the first 32 digits of a fingerprint in groups of four, for people to compare by telephone or letter."""
    return " ".join(digest[start : start + 4] for start in range(0, 32, 4))


def read_private(path: Path) -> object:
    """Return the private key of any kind in a PEM file.

    Raises:
        KeyUnusable: it is missing, can be read by others, or holds none.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_IMODE(mode) & 0o077:
            raise KeyUnusable(f"{path} can be used by others (mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path}")
        return load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise KeyUnusable(f"key file {path} does not exist") from None
    except OSError as error:
        raise KeyUnusable(f"key file {path} can't be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:  # cryptography's errors for what is no PEM, or is encrypted
        raise KeyUnusable(f"{path} holds no private key in PEM without a password") from error


def _read_public(pem: str, where: str) -> object:
    try:
        return load_pem_public_key(pem.encode())
    except (ValueError, TypeError) as error:
        raise KeyUnusable(f"{where} is no public key in PEM") from error
