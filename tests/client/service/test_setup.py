"""A site's beginning: its home, its request and the welcome that it takes; run again, nothing is lost."""

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from astrofed.client.policy import Policy
from astrofed.client.service import setup
from astrofed.client.service.home import BadSiteFile, Home, NoHome, NotJoined
from astrofed.shared.keys import fingerprint, grouped, new_node_key, public_pem
from astrofed.shared.membership import Welcome, read_request, read_welcome
from astrofed.simulations.bundled import resolve_bundled

DATA = {"planets": resolve_bundled("planets/k2")}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    list(setup.make_home(tmp_path / "home", "k2", "ops@example.org", DATA))
    return tmp_path / "home"


def test_a_home_has_a_key_that_only_its_owner_reads_and_a_request_without_data(home: Path) -> None:
    assert stat.S_IMODE((home / "node.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    request = read_request(home / "request.json")
    assert (request.name, request.contact) == ("k2", "ops@example.org")
    (offered,) = request.datasets
    assert (offered.name, offered.units, offered.unit) == ("planets", 548, "planet")
    assert str(DATA["planets"]) not in (home / "request.json").read_text()
    assert Policy.load(home / "policy.toml").tasks == ()  # nothing runs until its operator says so


def test_made_again_a_home_keeps_what_it_has(home: Path) -> None:
    before = {name: (home / name).read_bytes() for name in ("site.toml", "policy.toml", "node.key")}
    lines = list(setup.make_home(home, "k2", "somebody else", DATA))
    assert {name: (home / name).read_bytes() for name in before} == before
    assert "stays" in lines[0]
    with pytest.raises(setup.OtherSite, match="home of site 'k2'"):
        list(setup.make_home(home, "tess", "ops", DATA))


def test_a_dataset_that_can_not_be_used_leaves_no_home_behind(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="nowhere"):
        list(setup.make_home(tmp_path / "home", "k2", "ops", {"planets": tmp_path / "nowhere.parquet"}))
    assert not (tmp_path / "home").exists()


def test_a_folder_that_is_no_home_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(NoHome, match="client init"):
        Home.open(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("task_s = 3600", "tasks_s = 3600", "did you mean 'task_s'"),
        ("threads = ", "threads = 0 #", "threads"),
        ("[data]", "[data", "not valid TOML"),
    ],
)
def test_a_mistake_in_site_toml_is_named(home: Path, old: str, new: str, words: str) -> None:
    path = home / "site.toml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(BadSiteFile, match=words):
        Home.open(home)


def test_a_site_without_a_welcome_says_what_to_do(home: Path) -> None:
    with pytest.raises(NotJoined, match="client join"):
        _ = Home.open(home).welcome


def write_welcome(home: Path, certificate: str, key: Ed25519PrivateKey, **changes: object) -> Path:
    public = Home.open(home).key.public_key()
    entries = {
        "coordinator": "Origins, the network",
        "address": "fl.example.org:8443",
        "ca_certificate": certificate,
        "plan_key": public_pem(key.public_key()),
        "site": "k2",
        "node_fingerprint": fingerprint(public),
        "federations": ("all",),
        "time": datetime.now(UTC),
    }
    path = home.parent / "welcome.json"
    path.write_text(Welcome.model_validate({**entries, **changes}).to_json())
    return path


def test_a_site_joins_the_coordinator_whose_key_it_compared(home: Path, certificate: str) -> None:
    key = Ed25519PrivateKey.generate()
    site = Home.open(home)
    for _ in range(2):  # the second time, nothing is added
        welcome, found = setup.look_at_welcome(site, write_welcome(home, certificate, key))
        setup.check_fingerprint(found, grouped(fingerprint(key.public_key())).upper())
        lines = list(setup.take_welcome(site, welcome))
    assert len(lines) == 1
    policy = Policy.load(home / "policy.toml")
    assert [each.name for each in policy.coordinators] == ["Origins- the network"]
    assert policy.coordinator(key.public_key().public_bytes_raw()) is not None
    assert "# " in (home / "policy.toml").read_text()  # comments stay
    assert site.welcome.address == "fl.example.org:8443"


def test_another_key_than_the_one_that_was_read_out_is_not_joined(home: Path, certificate: str) -> None:
    _, found = setup.look_at_welcome(Home.open(home), write_welcome(home, certificate, Ed25519PrivateKey.generate()))
    other = grouped(fingerprint(Ed25519PrivateKey.generate().public_key()))
    for expected in (other, "", found[:9]):
        with pytest.raises(setup.WrongFingerprint):
            setup.check_fingerprint(found, expected)


def test_a_welcome_for_somebody_else_is_not_taken(home: Path, certificate: str) -> None:
    site, key = Home.open(home), Ed25519PrivateKey.generate()
    with pytest.raises(setup.OtherSite, match="welcomes site 'tess'"):
        setup.look_at_welcome(site, write_welcome(home, certificate, key, site="tess"))
    other = fingerprint(new_node_key().public_key())
    with pytest.raises(setup.OtherSite, match="another key"):
        setup.look_at_welcome(site, write_welcome(home, certificate, key, node_fingerprint=other))
    list(setup.take_welcome(site, setup.look_at_welcome(site, write_welcome(home, certificate, key))[0]))
    with pytest.raises(setup.OtherSite, match="has joined"):
        setup.look_at_welcome(site, write_welcome(home, certificate, Ed25519PrivateKey.generate()))


def test_a_request_that_was_changed_on_its_way_is_noticed(home: Path) -> None:
    path = home / "request.json"
    data = json.loads(path.read_text())
    data["name"] = "tess"
    path.write_text(json.dumps(data))
    with pytest.raises(Exception, match="changed on its way"):
        read_request(path)


def test_a_newer_welcome_signed_by_the_trusted_key_is_taken_and_both_keys_count_for_a_while(
    home: Path, certificate: str
) -> None:
    site, old, new = Home.open(home), Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    list(setup.take_welcome(site, setup.look_at_welcome(site, write_welcome(home, certificate, old))[0]))
    until = datetime.now(UTC) + timedelta(days=1)
    changes = {"older_plan_key": {"pem": public_pem(old.public_key()), "until": until}}
    path = write_welcome(home, certificate, new, **changes)
    with pytest.raises(setup.OtherSite, match="did not sign"):
        setup.look_at_welcome(site, path)
    path.write_text(read_welcome(path).signed(new).to_json())
    with pytest.raises(setup.OtherSite, match="did not sign"):
        setup.look_at_welcome(site, path)
    path.write_text(read_welcome(path).signed(old).to_json())
    for _ in range(2):
        welcome, found = setup.look_at_welcome(site, path)
        assert found is None
        list(setup.take_welcome(site, welcome))
    policy = Policy.load(home / "policy.toml")
    for when, count in ((until.timestamp() - 1, 2), (until.timestamp(), 1)):
        assert len(site.welcome.plan_keys(when)) == count
    assert all(policy.coordinator(key.public_bytes_raw()) for key in site.welcome.plan_keys(0.0))
    long_ago = {**changes, "time": datetime(2026, 1, 1, tzinfo=UTC)}
    path.write_text(read_welcome(write_welcome(home, certificate, old, **long_ago)).signed(old).to_json())
    with pytest.raises(setup.OtherSite, match="has a newer one"):
        setup.look_at_welcome(site, path)
