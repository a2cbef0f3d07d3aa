"""Enrolment requests and welcomes: what was written is read, what was changed is refused."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from astrofed.shared.keys import fingerprint, new_node_key, new_plan_key, public_pem
from astrofed.shared.membership import (
    LARGEST_FILE,
    NotAMembershipFile,
    OfferedDataset,
    Welcome,
    make_request,
    read_request,
    read_welcome,
)

DATASET = OfferedDataset(name="kepler", fingerprint="ab" * 32, unit="planet", units=1200)


def _certificate() -> str:
    key = new_plan_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    return builder.sign(key, None).public_bytes(Encoding.PEM).decode()


def _welcome(**changes: Any) -> Welcome:
    given: dict[str, Any] = {
        "coordinator": "Origins network",
        "address": "fl.example.org:8443",
        "ca_certificate": _certificate(),
        "plan_key": public_pem(new_plan_key().public_key()),
        "site": "kepler",
        "node_fingerprint": fingerprint(new_node_key().public_key()),
        "federations": ("planets",),
        "time": datetime(2026, 1, 2, tzinfo=UTC),
    }
    return Welcome(**{**given, **changes})


def test_a_request_comes_back_as_it_was_signed(tmp_path: Path) -> None:
    key = new_node_key()
    request = make_request("Kepler Centre", "ada@example.org", [DATASET], key)
    (tmp_path / "request.json").write_text(request.to_json())
    assert read_request(tmp_path / "request.json") == request
    assert request.fingerprint == fingerprint(key.public_key())


@pytest.mark.parametrize("key", ["name", "contact", "datasets", "time", "public_key", "signature"])
def test_a_request_changed_on_its_way_is_refused(tmp_path: Path, key: str) -> None:
    data = json.loads(make_request("Kepler", "ada@example.org", [DATASET], new_node_key()).to_json())
    changed = {
        "name": "Keplar",
        "contact": "eve@example.org",
        "datasets": [],
        "time": "2020-01-01T00:00:00Z",
        "public_key": public_pem(new_node_key().public_key()),
        "signature": "00" * 96,
    }
    (tmp_path / "request.json").write_text(json.dumps({**data, key: changed[key]}))
    with pytest.raises(NotAMembershipFile, match="changed on its way"):
        read_request(tmp_path / "request.json")


def test_a_request_that_can_not_be_is_refused_when_it_is_made() -> None:
    with pytest.raises(NotAMembershipFile, match="name"):
        make_request("../../etc", "ada@example.org", [], new_node_key())
    with pytest.raises(NotAMembershipFile, match="contact"):
        make_request("kepler", "ada\x1b[2J", [], new_node_key())


def test_a_welcome_comes_back(tmp_path: Path) -> None:
    welcome = _welcome(address="[::1]:8443")
    (tmp_path / "welcome.json").write_text(welcome.to_json())
    assert read_welcome(tmp_path / "welcome.json") == welcome
    assert (welcome.host, welcome.port) == ("::1", 8443)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "astrofed enrolment request"}, "is no welcome"),
        ({"version": 2}, "is of version 2"),
        ({"address": "example.org"}, "address"),
        ({"address": "example.org:99999"}, "between 1 and 65535"),
        ({"plan_key": "none"}, "no public key in PEM"),
        ({"ca_certificate": "none"}, "no certificate in PEM"),
        ({"site": "a\nb"}, "site"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_a_wrong_welcome_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    data = {**json.loads(_welcome().to_json()), **changes}
    (tmp_path / "welcome.json").write_text(json.dumps(data))
    with pytest.raises(NotAMembershipFile, match=message):
        read_welcome(tmp_path / "welcome.json")


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"[" * 100_000, b"[]", b" " * (LARGEST_FILE + 1)])
def test_what_is_no_file_of_ours_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "file").write_bytes(text)
    with pytest.raises(NotAMembershipFile):
        read_request(tmp_path / "file")
    with pytest.raises(NotAMembershipFile, match="does not exist"):
        read_welcome(tmp_path / "absent")
