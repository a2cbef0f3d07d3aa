"""The authority: its certificates are what TLS 1.3 takes, renewed when due, and trusted by who has its own alone."""

import socket
import ssl
import threading
from pathlib import Path

import pytest

from astrofed.server.service.authority import Authority, AuthorityUnusable


def _authority(folder: Path, *names: str) -> Authority:
    authority = Authority(folder)
    authority.create("Origins network")
    authority.issue(names)
    return authority


def _shake_hands(authority: Authority, name: str, trusted: str) -> str | None:
    """Return the TLS version on which client and server agree."""
    server, client = socket.socketpair()
    context = ssl.create_default_context(cadata=trusted)

    def serve() -> None:
        try:
            with authority.tls_context().wrap_socket(server, server_side=True) as wrapped:
                wrapped.recv(1)
        except (ssl.SSLError, ConnectionError):
            server.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client, context.wrap_socket(client, server_hostname=name) as wrapped:
            return wrapped.version()
    finally:
        thread.join()


def test_who_has_the_authoritys_certificate_reaches_the_server_by_its_names(tmp_path: Path) -> None:
    authority = _authority(tmp_path, "fl.example.org", "127.0.0.1", "::1")
    for name in ("fl.example.org", "127.0.0.1", "::1"):
        assert _shake_hands(authority, name, authority.certificate_pem) == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake_hands(authority, "other.example.org", authority.certificate_pem)
    stranger = _authority(tmp_path / "other", "fl.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake_hands(authority, "fl.example.org", stranger.certificate_pem)


def test_private_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    _authority(tmp_path, "localhost")
    keys = list(tmp_path.glob("*.key"))
    assert len(keys) == 3
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}


def test_making_it_again_changes_nothing(tmp_path: Path) -> None:
    authority = _authority(tmp_path, "localhost")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    authority.create("another name")
    assert authority.needs_renewal(["localhost"]) is None
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_certificate_is_renewed_when_there_is_a_reason(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.create("Origins network")
    assert authority.needs_renewal(["localhost"]) == "there is none"
    authority.issue(["localhost"])
    assert authority.needs_renewal(["localhost", "fl.example.org"]) == "it is for localhost"
    other = _authority(tmp_path / "other", "localhost")
    authority.server_key.write_bytes(other.server_key.read_bytes())
    assert authority.needs_renewal(["localhost"]) == "its key is another"
    with pytest.raises(AuthorityUnusable, match="renew --force"):
        authority.tls_context()
    trusted = authority.certificate_pem
    authority.issue(["localhost"])
    assert _shake_hands(authority, "localhost", trusted) == "TLSv1.3"


def test_a_damaged_certificate_is_named(tmp_path: Path) -> None:
    authority = _authority(tmp_path, "localhost")
    authority.server_certificate.write_text("nonsense")
    with pytest.raises(AuthorityUnusable, match=r"server\.crt"):
        authority.needs_renewal(["localhost"])
