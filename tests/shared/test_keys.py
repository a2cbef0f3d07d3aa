"""Keys are private to their owner, of the right kind, and have fingerprints that people can compare."""

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from astrofed.shared.keys import (
    KeyUnusable,
    fingerprint,
    grouped,
    new_node_key,
    new_plan_key,
    node_public_key,
    plan_public_key,
    public_pem,
    read_node_key,
    read_plan_key,
    write_key,
)


def test_keys_come_back_from_files_that_only_their_owner_reads(tmp_path: Path) -> None:
    node, plan = new_node_key(), new_plan_key()
    write_key(tmp_path / "node.pem", node)
    write_key(tmp_path / "plan.pem", plan)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert fingerprint(read_node_key(tmp_path / "node.pem").public_key()) == fingerprint(node.public_key())
    assert fingerprint(read_plan_key(tmp_path / "plan.pem").public_key()) == fingerprint(plan.public_key())
    assert node_public_key(public_pem(node.public_key())) == node.public_key()
    assert plan_public_key(public_pem(plan.public_key())) == plan.public_key()


def test_a_fingerprint_is_the_sha256_of_the_public_key_in_der() -> None:
    key = new_node_key().public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert fingerprint(key) == hashlib.sha256(der).hexdigest()
    assert grouped(fingerprint(key)).replace(" ", "") == fingerprint(key)[:32]


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    write_key(tmp_path / "key.pem", new_node_key())
    with pytest.raises(KeyUnusable, match="never overwritten"):
        write_key(tmp_path / "key.pem", new_node_key())


def test_what_is_no_usable_key_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    with pytest.raises(KeyUnusable, match="does not exist"):
        read_node_key(path)
    write_key(path, new_plan_key())
    with pytest.raises(KeyUnusable, match="no P-384 key"):
        read_node_key(path)
    path.chmod(0o640)
    with pytest.raises(KeyUnusable, match="chmod 600"):
        read_plan_key(path)
    path.write_bytes(b"-----BEGIN NONSENSE-----")
    path.chmod(0o600)
    with pytest.raises(KeyUnusable, match="no private key in PEM"):
        read_plan_key(path)
    with pytest.raises(KeyUnusable, match="P-384"):
        node_public_key(public_pem(ec.generate_private_key(ec.SECP256R1()).public_key()))
    with pytest.raises(KeyUnusable, match="no public key in PEM"):
        plan_public_key("ssh-ed25519 AAAA")
