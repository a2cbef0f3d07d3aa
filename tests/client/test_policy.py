"""A site's policy file: private by default, strict about keys, rules by dataset, coordinators by key."""

from datetime import datetime
from pathlib import Path

import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from astrofed.client.policy import DataRules, Policy, PolicyError
from astrofed.client.policy_template import policy_template, write_new_policy
from astrofed.shared.registry import find

KEY = Ed25519PrivateKey.generate().public_key().public_bytes_raw()


def load(folder: Path, **content: object) -> Policy:
    path = folder / "policy.toml"
    path.write_text(tomli_w.dumps(content))
    return Policy.load(path)


def test_an_empty_policy_lets_nothing_run_and_nothing_leave(tmp_path: Path) -> None:
    policy = load(tmp_path)
    rules = policy.rules(Path("anything"))
    assert not policy.allows("modes", "federated") and not policy.allows("tasks", "planets")
    assert policy.coordinator(KEY) is None
    assert rules.privacy == "required" and rules.epsilon == 1.0
    assert not rules.allows_metric("loss") and not rules.allows_statistic("mean:ta") and not rules.describe
    assert rules == DataRules()


def test_names_match_as_in_the_registry_and_origins_by_package_or_file(tmp_path: Path) -> None:
    policy = load(tmp_path, tasks=["Planets"], models=["datacube-net"], plugins=["astrofed", "p.py"])
    assert policy.allows("tasks", "planets") and policy.allows("models", "DatacubeNet")
    assert not policy.allows("models", "mlp")
    assert policy.allows_origin(find("tasks", "planets").origin)
    assert policy.allows_origin(str(tmp_path / "p.py")) and not policy.allows_origin(str(tmp_path / "q.py"))
    assert not policy.allows_origin("astrofed-extras (astrofed_extras:Task)")


def test_coordinators_are_known_by_their_keys(tmp_path: Path) -> None:
    policy = load(tmp_path, coordinators=[{"name": "Leiden", "public_key": KEY.hex()}])
    known = policy.coordinator(KEY)
    assert known is not None and known.name == "Leiden"
    assert policy.coordinator(Ed25519PrivateKey.generate().public_key().public_bytes_raw()) is None
    with pytest.raises(PolicyError, match="stands twice"):
        load(tmp_path, coordinators=[{"name": name, "public_key": KEY.hex()} for name in ("a", "b")])
    with pytest.raises(PolicyError, match=r"coordinators.0.public_key"):
        load(tmp_path, coordinators=[{"name": "Leiden", "public_key": "secret"}])


def test_a_dataset_has_rules_of_its_own_and_the_rest_from_all_data(tmp_path: Path) -> None:
    policy = load(
        tmp_path,
        data={"epsilon": 2.0, "metrics": ["loss"]},
        datasets={"keck": {"path": "tables/keck", "epsilon": 4.0}},
    )
    keck, other = policy.rules(tmp_path / "tables" / "keck"), policy.rules(tmp_path / "tables" / "k2")
    assert (keck.epsilon, keck.metrics) == (4.0, ("loss",))
    assert (other.epsilon, other.metrics) == (2.0, ("loss",))


def test_patterns_reach_over_slashes(tmp_path: Path) -> None:
    rules = load(tmp_path, data={"metrics": ["loss", "rmse/*"]}).data
    assert rules.allows_metric("rmse/ta/3") and not rules.allows_metric("loss/planet/3")


@pytest.mark.parametrize(
    ("hours", "hour", "is_open"),
    [
        ((), 12, True),
        (("22:00-06:00",), 23, True),
        (("22:00-06:00",), 5, True),
        (("22:00-06:00",), 6, False),
        (("09:00-12:00", "14:00-15:00"), 14, True),
        (("09:00-12:00", "14:00-15:00"), 13, False),
    ],
)
def test_hours_may_cross_midnight(hours: tuple[str, ...], hour: int, is_open: bool) -> None:
    assert DataRules(hours=hours).open_at(datetime(2026, 11, 28, hour, 0)) is is_open


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"taks": ["planets"]}, "did you mean 'tasks'"),
        ({"data": {"epsilom": 1}}, "did you mean 'epsilon'"),
        ({"data": {"epsilon": -1}}, "data.epsilon"),
        ({"data": {"hours": ["9-5"]}}, "write it as '22:00-06:00'"),
        ({"data": {"privacy": "maybe"}}, "data.privacy"),
        ({"datasets": {"keck": {"epsilon": 1}}}, "datasets.keck.path: required"),
        ({"data": {"noise": {"multiplier": 5.0, "bounds": {}}}}, "data.noise.bounds"),
    ],
)
def test_mistakes_are_named_with_their_key(tmp_path: Path, content: dict[str, object], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        load(tmp_path, **content)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"does not exist.*--new"):
        Policy.load(tmp_path / "policy.toml")
    (tmp_path / "policy.toml").write_text("modes = [")
    with pytest.raises(PolicyError, match="not valid TOML"):
        Policy.load(tmp_path / "policy.toml")


def test_a_new_policy_is_careful_and_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    policy = write_new_policy(path, {"Leiden": KEY.hex()})
    assert policy == Policy.load(path)
    assert policy.coordinator(KEY) is not None and policy.tasks == () and policy.data.metrics == ()
    assert policy.data == DataRules()  # what the file says is what is so without it
    with pytest.raises(PolicyError, match="exists already"):
        write_new_policy(path)
    with pytest.raises(PolicyError):
        write_new_policy(tmp_path / "other.toml", {'x"\nmodes = ["nas"]': KEY.hex()})
    assert "[[coordinators]]" in policy_template(path)


def test_what_the_template_says_of_noise_can_be_taken_out_of_its_comment(tmp_path: Path) -> None:
    text = policy_template(tmp_path / "policy.toml").replace("# noise", "noise").replace("# max_update", "max_update")
    path = tmp_path / "policy.toml"
    path.write_text(text)
    noise = Policy.load(path).data.noise
    assert noise is not None and noise.bound("loss") == 3.0 and noise.bound("rmse/ta") is None


def test_peers_are_known_by_name_and_key(tmp_path: Path) -> None:
    peers = [{"name": name, "public_key": key * 64} for name, key in (("kepler", "a"), ("tess", "b"))]
    assert [peer.name for peer in load(tmp_path, peers=peers).peers] == ["kepler", "tess"]
    with pytest.raises(PolicyError, match="peers: the public key of 'kepler' stands twice"):
        load(tmp_path, peers=[peers[0], {**peers[1], "public_key": "a" * 64}])
    with pytest.raises(PolicyError, match="peers: the name 'kepler' stands twice"):
        load(tmp_path, peers=[peers[0], {**peers[1], "name": "kepler"}])
    with pytest.raises(PolicyError, match=r"peers.0.public_key"):
        load(tmp_path, peers=[{"name": "kepler", "public_key": "secret"}])
