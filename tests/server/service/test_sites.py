"""The registry: one key is one site, a revoked key stays refused, and a change by another process is seen at once."""

from pathlib import Path

import pytest

from astrofed.server.service.sites import RegistryBroken, SiteExists, Sites, UnknownSite, file_name
from astrofed.shared.keys import NodeKey, fingerprint, new_node_key
from astrofed.shared.membership import EnrolmentRequest, make_request


def _request(name: str, key: NodeKey) -> EnrolmentRequest:
    return make_request(name, "ada@example.org", [], key)


def test_enrolling_twice_changes_nothing(tmp_path: Path) -> None:
    sites, key = Sites(tmp_path), new_node_key()
    site, done = sites.enroll(_request("kepler", key), ("default",))
    assert done == "enrolled" and site.fingerprint == fingerprint(key.public_key())
    assert sites.enroll(_request("kepler", key), ("default",)) == (site, "unchanged")
    other, done = sites.enroll(_request("kepler", key), ("default", "more"))
    assert done == "changed" and other.federations == ("default", "more")
    assert Sites(tmp_path).get("kepler") == other


def test_one_key_is_one_site_and_a_name_has_one_key(tmp_path: Path) -> None:
    sites, key = Sites(tmp_path), new_node_key()
    sites.enroll(_request("kepler", key), ("default",))
    with pytest.raises(SiteExists, match="enrolled as 'kepler'"):
        sites.enroll(_request("tess", key), ("default",))
    with pytest.raises(SiteExists, match="--replace"):
        sites.enroll(_request("kepler", new_node_key()), ("default",))


def test_a_replaced_or_revoked_key_stays_refused(tmp_path: Path) -> None:
    sites, old, new = Sites(tmp_path), new_node_key(), new_node_key()
    sites.enroll(_request("kepler", old), ("default",))
    sites.enroll(_request("kepler", new), ("default",), replace=True)
    assert sites.by_key(fingerprint(old.public_key())) is None
    with pytest.raises(SiteExists, match="revoked"):
        sites.enroll(_request("kepler", old), ("default",), replace=True)
    with pytest.raises(SiteExists, match="revoked"):
        sites.enroll(_request("another", old), ("default",))
    site, first = sites.revoke("kepler")
    assert first and site.revoked is not None
    assert sites.revoke("kepler") == (site, False)
    with pytest.raises(SiteExists, match="revoked"):
        sites.enroll(_request("kepler", new), ("default",), replace=True)
    sites.enroll(_request("kepler", new_node_key()), ("default",), replace=True)
    assert sites.get("kepler").revoked is None


def test_another_process_is_noticed_at_once(tmp_path: Path) -> None:
    one, other = Sites(tmp_path), Sites(tmp_path)
    for number in range(50):
        one.enroll(_request(f"site {number}", new_node_key()), ("default",))
        assert other.get(f"site {number}").revoked is None
        one.revoke(f"site {number}")
        assert other.get(f"site {number}").revoked is not None


def test_what_is_unknown_or_damaged_is_named(tmp_path: Path) -> None:
    sites = Sites(tmp_path)
    with pytest.raises(UnknownSite, match="enrolled: none"):
        sites.get("kepler")
    sites.enroll(_request("kepler", new_node_key()), ("default",))
    with pytest.raises(UnknownSite, match="enrolled: kepler"):
        sites.revoke("keppler")
    (tmp_path / "kepler.json").write_text("{}")
    with pytest.raises(RegistryBroken, match=r"kepler\.json"):
        Sites(tmp_path).all()


def test_no_two_names_share_a_file() -> None:
    names = ["a b", "a_b", "a%20b", "a.b", "A b", "a-b"]
    assert len({file_name(name) for name in names}) == len(names)
    assert "/" not in file_name("../a")
