"""`astrofed client ledger`: what was spent, what is left, what a plan would cost, and what the operator decides."""

import json
import shutil
import sqlite3
import tomllib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from astrofed.client.data.table import read_table
from astrofed.client.policy import Policy
from astrofed.client.privacy.ledger import Expense, Ledger
from astrofed.client.privacy.noise_keys import noise_key, public_digits
from astrofed.shared.privacy.accounting import Event, epsilon
from astrofed.simulations.bundled import resolve_bundled

DATASET = read_table(resolve_bundled("planets/keck")).fingerprint
SPENT = [Event(4.0, 1.0, 10), Event(5.0, 1.0, 12)]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two runs on Keck's planets; the second was reserved for 20 steps, took 12, and died in its second round."""
    found = tmp_path / "home"
    ledger = Ledger(found)
    first = Expense("first", 1, "federated", DATASET, "planet", 11, 1.0, SPENT[0])
    ledger.settle(ledger.reserve(first, 8.0, 1e-5), first, 10)
    second = Expense("second", 1, "single", DATASET, "planet", 11, 1.0, Event(5.0, 1.0, 6))
    ledger.settle(ledger.reserve(second, 8.0, 1e-5), second, 6)
    ledger.reserve(second, 8.0, 1e-5)
    return found


def plan(tmp_path: Path, small: dict[str, Any], target: float) -> Path:
    path = tmp_path / "plan.toml"
    privacy = {"unit": "planet", "epsilon": target, "delta": 1e-5}
    path.write_text(tomli_w.dumps({**small, "rounds": 5, "privacy": privacy}))
    return path


def test_it_shows_what_was_spent_by_whom_and_what_is_left(astrofed: Command, home: Path) -> None:
    code, out, _ = astrofed("client", "ledger", home, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["rows"] == 5 and found["accepted"] == [] and found["what_if"] == []
    assert found["public_key"] == Ledger(home).public_key
    (dataset,) = found["datasets"]
    spent = epsilon(SPENT, 1e-5)
    assert dataset["dataset"] == DATASET and dataset["unit"] == "planet" and dataset["units"] == 11
    assert dataset["epsilon"] == spent and dataset["left"] == 8 - spent and dataset["budget"] == 8
    runs = [(run["run"], run["mode"], run["reservations"], run["open"], run["steps"]) for run in dataset["runs"]]
    assert runs == [("first", "federated", 1, 0, 10), ("second", "single", 2, 1, 12)]


def test_people_see_the_same(astrofed: Command, home: Path) -> None:
    code, out, _ = astrofed("client", "ledger", home / "ledger.sqlite")
    assert code == 0
    assert f"dataset {DATASET[:12]}…, 11 × planet: epsilon {epsilon(SPENT, 1e-5):.4g} at delta 1e-05, of 8" in out
    assert "first" in out and "second" in out and "signed with the key" in out


def test_the_home_can_be_given_by_the_environment(
    astrofed: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASTROFED_HOME", str(home))
    assert json.loads(astrofed("client", "ledger", "--json")[1])["ledger"] == str(home)


def test_a_planned_run_is_priced_with_what_was_spent_and_spends_nothing(
    astrofed: Command, home: Path, tmp_path: Path, small: dict[str, Any]
) -> None:
    rows = Ledger(home).book().last
    code, out, _ = astrofed("client", "ledger", home, "--what-if", plan(tmp_path, small, 8.0), "--json")
    assert code == 0
    (cost,) = json.loads(out)["what_if"]  # the other participants' data are not in this ledger
    assert cost["participant"] == "keck" and cost["dataset"] == DATASET and cost["refused"] is None
    event = Event(cost["noise_multiplier"], cost["sample_rate"], cost["steps"])
    assert cost["steps"] == 5 and cost["sample_rate"] == 1.0
    assert cost["epsilon_before"] == epsilon(SPENT, 1e-5)
    assert cost["epsilon_after"] == epsilon([*SPENT, event], 1e-5) <= 8
    assert "what if keck trained" in astrofed("client", "ledger", home, "--what-if", plan(tmp_path, small, 8.0))[1]
    assert Ledger(home).book().last == rows


def test_a_plan_that_does_not_fit_is_told_what_is_left(
    astrofed: Command, home: Path, tmp_path: Path, small: dict[str, Any]
) -> None:
    cheap = plan(tmp_path, small, 3.0)
    code, out, _ = astrofed("client", "ledger", home, "--what-if", cheap, "--json")
    (cost,) = json.loads(out)["what_if"]
    assert code == 0 and cost["noise_multiplier"] is None
    assert "the budget is 3, spent are 4." in cost["refused"] and "left 0" in cost["refused"]
    assert "what if keck trained by this plan: refused" in astrofed("client", "ledger", home, "--what-if", cheap)[1]


def test_a_plan_without_privacy_has_no_price(
    astrofed: Command, home: Path, tmp_path: Path, small: dict[str, Any]
) -> None:
    (tmp_path / "open.toml").write_text(tomli_w.dumps(small))
    code, out, error = astrofed("client", "ledger", home, "--what-if", tmp_path / "open.toml", "--json")
    assert code == 2 and out == "" and "'small' has no [privacy] section" in error


def test_no_ledger_is_a_mistake_that_names_those_nearby(astrofed: Command, home: Path, tmp_path: Path) -> None:
    code, out, error = astrofed("client", "ledger", tmp_path / "nowhere", "--json")
    assert code == 2 and out == "" and "there is no privacy ledger in" in error
    shutil.copytree(home, tmp_path / "run" / "sites" / "Keck")
    code, _, error = astrofed("client", "ledger", tmp_path / "run")
    assert code == 2 and f"did you mean {tmp_path / 'run' / 'sites' / 'Keck'}?" in error
    assert not (tmp_path / "nowhere").exists()


def test_a_corrupt_file_is_a_mistake_that_says_how_to_go_on(astrofed: Command, home: Path) -> None:
    spent = epsilon(SPENT, 1e-5)
    (home / "ledger.sqlite").write_bytes(b"no database" * 1000)
    code, out, error = astrofed("client", "ledger", home, "--accept", "--json")
    assert code == 2 and out == "" and "file is not a database" in error and "moved away" in error
    (home / "ledger.sqlite").rename(home / "broken")
    code, out, _ = astrofed("client", "ledger", home, "--accept", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["datasets"][0]["epsilon"] == spent and len(found["accepted"]) == 1
    assert [(run["run"], run["steps"]) for run in found["datasets"][0]["runs"]] == [("", 22)]


def test_a_doubt_is_told_and_is_accepted_only_when_the_operator_says_so(astrofed: Command, home: Path) -> None:
    with closing(sqlite3.connect(home / "ledger.sqlite")) as connection:
        connection.executescript("DROP TRIGGER entry_stays; UPDATE entry SET steps = 1 WHERE id = 1;")
    code, out, error = astrofed("client", "ledger", home, "--json")
    assert code == 2 and out == "" and "row 1 is not what was written" in error and f"{home} --accept" in error
    code, out, _ = astrofed("client", "ledger", home, "--accept")
    assert code == 0 and "in doubt and accepted by the operator" in out
    found = json.loads(astrofed("client", "ledger", home, "--json")[1])
    assert found["accepted"][0]["doubt"].startswith("row 1 is not what was written")
    assert found["datasets"][0]["epsilon"] >= epsilon(SPENT, 1e-5)
    assert "nothing was in doubt" in astrofed("client", "ledger", home, "--accept")[1]


def test_head_and_key_may_be_kept_elsewhere(astrofed: Command, tmp_path: Path) -> None:
    seals = tmp_path / "seals"
    seals.mkdir()
    Ledger(tmp_path / "home", seals).events(DATASET)
    assert astrofed("client", "ledger", tmp_path / "home", "--seals", seals)[0] == 0
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["ledger.sqlite"]


def test_the_noise_key_is_shown_as_other_sites_policies_take_it(astrofed: Command, tmp_path: Path) -> None:
    home = tmp_path / "home"
    data = f"planets={resolve_bundled('planets/keck')}"
    assert astrofed("client", "init", home, "--name", "keck", "--contact", "a@b.org", "--data", data)[0] == 0
    code, out, _ = astrofed("client", "noise-key", home)
    assert code == 0 and out == astrofed("client", "noise-key", home)[1]  # made once
    (peer,) = Policy.parse(tomllib.loads(out), tmp_path / "policy.toml").peers
    assert (peer.name, peer.public_key) == ("keck", public_digits(noise_key(home)))
    assert astrofed("client", "noise-key", tmp_path)[0] == 2  # no home
