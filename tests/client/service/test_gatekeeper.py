"""The gatekeeper: only the coordinator's signed plans, for this site, in their time; all else is refused in words."""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from astrofed.client.service import home as module
from astrofed.client.service.gatekeeper import Gatekeeper
from astrofed.client.service.home import Home
from astrofed.client.service.messages import Envelope
from astrofed.client.service.setup import make_home, take_welcome
from astrofed.server.search.space import candidate_plan
from astrofed.shared.errors import UserMistake
from astrofed.shared.membership import Welcome
from astrofed.shared.plan import load_plan
from astrofed.shared.signed_plan import sign_plan, with_part
from astrofed.simulations.bundled import resolve_bundled

NODE, NOW = 42, 1_800_000_000
ENVELOPE = Envelope("a" * 64, 1, 1, NODE, "train", "", "", float(NOW), 600.0)
KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def home(tmp_path: Path, certificate: str) -> Home:
    from datetime import UTC, datetime

    from astrofed.shared.keys import fingerprint, public_pem

    list(make_home(tmp_path / "home", "k2", "ops", {"planets": resolve_bundled("planets/k2")}))
    home = Home.open(tmp_path / "home")
    welcome = Welcome(
        coordinator="here",
        address="127.0.0.1:1",
        ca_certificate=certificate,
        plan_key=public_pem(KEY.public_key()),
        site="k2",
        node_fingerprint=fingerprint(home.key.public_key()),
        federations=("all",),
        time=datetime.now(UTC),
    )
    list(take_welcome(home, welcome))
    return home


def signed(plan: str, key: Ed25519PrivateKey = KEY, run: str = "run", **changes: Any) -> Mapping[str, Any]:
    return {**sign_plan(plan, run, NOW, NOW + 3600, key), "server-round": 2, **changes}


def test_a_signed_plan_is_let_in(home: Home, plan: str, private_plan: str) -> None:
    keeper = Gatekeeper(home)
    admitted = keeper.admit(ENVELOPE, signed(plan), NODE, NOW)
    assert (admitted.kind, admitted.run, admitted.round, admitted.charges) == ("train", "run", 2, False)
    assert str(admitted) == "run run: train, round 2 of 4"
    other = replace(ENVELOPE, run=2)
    assert keeper.admit(other, signed(private_plan), NODE, NOW).charges
    assert not keeper.admit(replace(other, kind="evaluate"), signed(private_plan), NODE, NOW).charges


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "train.evil"}, "no request of the kind"),
        ({"kind": "system"}, "no request of the kind"),
        ({"sender": 7}, "not from the coordinator's server"),
        ({"receiver": 7}, "not from the coordinator's server to this node"),
        ({"reply_to": "b" * 64}, "not from the coordinator's server"),
    ],
)
def test_the_outside_must_be_right(home: Home, plan: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserMistake, match=words):
        Gatekeeper(home).admit(replace(ENVELOPE, **changes), signed(plan), NODE, NOW)


def test_what_is_not_signed_as_it_stands_is_refused(home: Home, plan: str) -> None:
    keeper, other = Gatekeeper(home), Ed25519PrivateKey.generate()
    tampered = plan.replace('"rounds":4', '"rounds":9')
    assert tampered != plan
    unsigned = {key: value for key, value in signed(plan).items() if key != "plan-signature"}
    for settings in (
        signed(plan, other),
        {**signed(plan), "plan": tampered},
        signed(plan, **{"plan-run": "x"}),
        unsigned,
        {},
    ):
        with pytest.raises(UserMistake, match="signed"):
            keeper.admit(ENVELOPE, settings, NODE, NOW)


@pytest.mark.parametrize(("now", "words"), [(NOW + 4000, "valid until"), (NOW - 400, "compare the clocks")])
def test_a_plan_out_of_its_time_is_refused(home: Home, plan: str, now: int, words: str) -> None:
    with pytest.raises(UserMistake, match=words):
        Gatekeeper(home).admit(ENVELOPE, signed(plan), NODE, now)


def test_a_plan_for_others_or_of_other_data_is_refused(home: Home, plan: str) -> None:
    keeper = Gatekeeper(home)
    data = json.loads(plan)
    data["participants"] = [each for each in data["participants"] if each["name"] != "k2"]
    with pytest.raises(UserMistake, match="'k2' is not in the plan"):
        keeper.admit(ENVELOPE, signed(json.dumps(data)), NODE, NOW)
    data["participants"].append({"name": "k2", "data": "/etc/shadow"})
    with pytest.raises(UserMistake, match="no dataset '/etc/shadow'"):
        keeper.admit(ENVELOPE, signed(json.dumps(data)), NODE, NOW)


@pytest.mark.parametrize("text", ["{}", "[", "null", '{"name": "x", "code": "import os"}', "[" * 10_000])
def test_a_signed_text_that_is_no_plan_is_refused(home: Home, text: str) -> None:
    with pytest.raises(UserMistake, match="is none"):
        Gatekeeper(home).admit(ENVELOPE, signed(text), NODE, NOW)


def test_a_run_keeps_the_plan_that_it_began_with(home: Home, plan: str) -> None:
    keeper = Gatekeeper(home)
    keeper.admit(ENVELOPE, signed(plan), NODE, NOW)
    with pytest.raises(UserMistake, match="another plan before"):
        keeper.admit(ENVELOPE, signed(plan.replace('"seed":3', '"seed":4')), NODE, NOW)
    with pytest.raises(UserMistake, match="another plan before"):
        keeper.admit(ENVELOPE, signed(plan, run="other"), NODE, NOW)


def test_a_part_of_a_signed_search_is_let_in_and_nothing_beyond_it(home: Home, plan: str) -> None:
    space = {"space": {"model.hidden": [[8], [16]]}, "candidates": 2, "population": 2}
    whole = load_plan({**json.loads(plan), "mode": "nas", "search": space})
    part = candidate_plan(whole, ((16,),), "candidate")
    beyond = part.model_copy(update={"task": whole.task.model_copy(update={"options": {"held_out": 0.5}})})
    sent = sign_plan(whole.to_json(), "run", NOW, NOW + 3600, KEY)
    with pytest.raises(UserMistake, match="does not allow mode 'nas'"):
        Gatekeeper(home).admit(ENVELOPE, with_part(sent, part.to_json()), NODE, NOW)
    path = home.folder / "policy.toml"
    path.write_text(path.read_text().replace('modes = ["federated"]', 'modes = ["nas", "federated"]'))
    module._policy.cache_clear()
    keeper = Gatekeeper(home)
    for each in (part, whole):
        assert keeper.admit(ENVELOPE, with_part(sent, each.to_json()), NODE, NOW).plan == each
    with pytest.raises(UserMistake, match="its 'task' is another"):
        keeper.admit(ENVELOPE, with_part(sent, beyond.to_json()), NODE, NOW)


def test_a_coordinator_who_is_not_in_the_policy_is_refused(home: Home, plan: str) -> None:
    path = home.folder / "policy.toml"
    path.write_text(path.read_text().split('[[coordinators]]\nname = "here"')[0])
    module._policy.cache_clear()
    with pytest.raises(UserMistake, match="names no coordinator with the plan key"):
        Gatekeeper(home).admit(ENVELOPE, signed(plan), NODE, NOW)


def test_the_time_is_this_machines(home: Home, plan: str) -> None:
    now = int(time.time())
    settings = {**sign_plan(plan, "run", now, now + 60, KEY)}
    assert Gatekeeper(home).admit(ENVELOPE, settings, NODE).round is None
