"""Rotation: old and new are trusted for a while, then the new alone; each step may be done twice."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from astrofed.cli import app
from astrofed.server.service.authority import Authority, AuthorityUnusable
from astrofed.server.service.home import ServerHome
from astrofed.server.service.overview import server_status
from astrofed.server.service.rotation import Rotation
from astrofed.server.service.setup import enroll_site, make_server, renew_certificate
from astrofed.shared.keys import new_node_key, plan_public_key
from astrofed.shared.membership import OfferedDataset, Welcome, make_request, read_welcome


def soon() -> float:
    """In a minute; taken when the test runs, which may be long after it was collected."""
    return datetime.now(UTC).timestamp() + 60


def later() -> float:
    """In two months."""
    return datetime.now(UTC).timestamp() + 60 * 86400


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    folder = tmp_path / "server"
    list(make_server(folder, {"name": "Origins", "host": "fl.example.org"}))
    offered = OfferedDataset(name="archive", fingerprint="ab" * 32, unit="planet", units=1200)
    path = tmp_path / "kepler.json"
    path.write_text(make_request("kepler", "ada@example.org", [offered], new_node_key()).to_json())
    list(enroll_site(folder, path, ("default",)))
    return ServerHome(folder)


def rotate(home: ServerHome, *words: str) -> str:
    done = CliRunner().invoke(app, ["server", "rotate", *words, "--home", str(home.folder)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return str(done.stdout)


def welcome(home: ServerHome) -> Welcome:
    return read_welcome(home.welcomes / "kepler.json")


def move_dates(home: ServerHome, days: float) -> None:
    """Let so many days pass."""
    path = home.authority / "rotation.json"
    dates: dict[str, Any] = json.loads(path.read_text())
    moved = {k: v and (datetime.fromisoformat(v) - timedelta(days=days)).isoformat() for k, v in dates.items()}
    path.write_text(json.dumps(moved))


def test_a_plan_key_is_replaced_after_an_overlap(home: ServerHome) -> None:
    before, old = welcome(home), Authority(home.authority).plan_key
    said = rotate(home, "plan-key")
    assert "made a new one" in said and "kepler: wrote its welcome" in said
    update = welcome(home)
    assert update.is_signed_by(before.plan_keys(soon())) and update.plan_key != before.plan_key
    assert [len(update.plan_keys(when)) for when in (soon(), later())] == [2, 1]
    assert Authority(home.authority).plan_key.private_bytes_raw() == old.private_bytes_raw()  # still in use
    files = {path: path.read_bytes() for path in home.folder.rglob("*") if path.is_file()}
    assert "already" in rotate(home, "plan-key")
    assert {path: path.read_bytes() for path in home.folder.rglob("*") if path.is_file()} == files
    assert "being replaced" in "\n".join(server_status(home.folder).lines())
    rotate(home, "plan-key", "--finish")
    assert Authority(home.authority).plan_key_pem == update.plan_key
    assert not (home.authority / "plan-next.key").exists()
    assert server_status(home.folder).rotating == ()


def test_an_authority_is_replaced_when_its_time_is_over(home: ServerHome) -> None:
    before = welcome(home)
    rotate(home, "ca")
    update = welcome(home)
    assert update.ca_certificates(soon()) == update.ca_certificate + before.ca_certificate
    assert update.ca_certificates(later()) == update.ca_certificate != before.ca_certificate
    issued = (home.authority / "server.crt").read_bytes()
    renew_certificate(home.folder)
    assert (home.authority / "server.crt").read_bytes() == issued
    move_dates(home, 31)
    assert "replaced" in renew_certificate(home.folder)
    authority = Authority(home.authority)
    assert authority.certificate_pem == update.ca_certificate
    assert (home.authority / "server.crt").read_bytes() != issued
    authority.tls_context()


def test_a_crash_between_two_files_is_mended_by_the_next_try(home: ServerHome) -> None:
    rotation = Rotation(home.authority)
    rotation.begin("ca", "Origins", 30)
    new = rotation.ca_pem[0]
    (home.authority / "ca-next.key").replace(home.authority / "ca.key")
    rotate(home, "ca", "--finish")
    assert Authority(home.authority).certificate_pem == new


def test_a_stolen_key_counts_no_more_at_once(home: ServerHome) -> None:
    before = welcome(home)
    rotate(home, "plan-key", "--days", "0")
    assert welcome(home).plan_keys(soon()) == [plan_public_key(welcome(home).plan_key)]
    assert Authority(home.authority).plan_key_pem == welcome(home).plan_key != before.plan_key


def test_a_new_site_gets_the_new_key_and_the_old(home: ServerHome, tmp_path: Path) -> None:
    rotate(home, "plan-key")
    said = "\n".join(enroll_site(home.folder, tmp_path / "kepler.json", ("default",)))
    from astrofed.shared.keys import fingerprint, grouped

    assert grouped(fingerprint(plan_public_key(welcome(home).plan_key))) in said


def test_damaged_dates_are_named(home: ServerHome) -> None:
    rotate(home, "ca")
    (home.authority / "rotation.json").write_text("{")
    with pytest.raises(AuthorityUnusable, match="begin the rotation again"):
        Rotation(home.authority).until("ca")
