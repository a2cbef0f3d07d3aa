"""`astrofed client policy` and `astrofed client check`: what a site allows, and what it would say to a plan."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from astrofed.client.data.table import read_table
from astrofed.client.policy import Policy
from astrofed.client.privacy.ledger import Expense, Ledger
from astrofed.client.service.setup import make_home
from astrofed.shared.privacy.accounting import epsilon
from astrofed.shared.privacy.events import Event
from astrofed.simulations.bundled import resolve_bundled

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plan(tmp_path: Path, small: dict[str, Any]) -> Path:
    path = tmp_path / "plan.toml"
    privacy = {"unit": "planet", "epsilon": 4.0, "delta": 1e-5}
    path.write_text(tomli_w.dumps({**small, "rounds": 5, "privacy": privacy}))
    return path


def write(folder: Path, modes: tuple[str, ...] = ("federated",), **data: Any) -> Path:
    folder.mkdir(exist_ok=True)
    names = {"modes": modes, "tasks": ["planets"], "models": ["mlp"]}
    (folder / "policy.toml").write_text(tomli_w.dumps({**names, "data": {"epsilon": 6.0, "delta": 1e-5, **data}}))
    return folder


def test_a_new_policy_is_written_once_and_said_in_words(astrofed: Command, tmp_path: Path) -> None:
    code, out, _ = astrofed("client", "policy", tmp_path / "policy.toml", "--new")
    assert code == 0 and "so no plan is let in" in out and "epsilon 1 at delta 1e-06, over all runs" in out
    assert Policy.load(tmp_path / "policy.toml").tasks == ()
    code, _, error = astrofed("client", "policy", tmp_path, "--new")
    assert code == 2 and "exists already" in error


def test_words_say_what_leaves(astrofed: Command, tmp_path: Path) -> None:
    noise = {"multiplier": 5.0, "bounds": {"loss": 3.0}}
    home = write(tmp_path / "home", metrics=["loss"], noise=noise, hours=["22:00-06:00"], max_update_norm=9.0)
    code, out, _ = astrofed("client", "policy", home, "--json")
    words = json.loads(out)["words"]
    assert code == 0 and "during 22:00-06:00, updates at most 9 long" in " ".join(words)
    assert "with noise of multiplier 5 charged to epsilon (loss up to 3)" in words[-1]


def test_a_mistake_in_a_policy_is_named(astrofed: Command, tmp_path: Path) -> None:
    code, _, error = astrofed("client", "policy", write(tmp_path / "home", metrcis=["loss"]))
    assert code == 2 and "data.metrcis: unknown key; did you mean 'metrics'?" in error


def test_a_plan_that_would_be_let_in_is_priced_and_nothing_is_written(
    astrofed: Command, tmp_path: Path, plan: Path
) -> None:
    home = write(tmp_path / "home")
    code, out, _ = astrofed("client", "check", plan, "--site", "keck", "--home", home, "--json")
    found = json.loads(out)
    assert code == 0 and found["takes_part"] and found["refused"] == []
    assert 0.99 * 4 <= found["cost"]["epsilon_after"] <= 4 and found["cost"]["steps"] == 5
    assert [path.name for path in home.iterdir()] == ["policy.toml"]
    assert "it would take part" in astrofed("client", "check", plan, "--site", "keck", "--home", home)[1]


def test_the_price_counts_what_was_spent(astrofed: Command, tmp_path: Path, plan: Path) -> None:
    home, dataset = write(tmp_path / "home"), read_table(resolve_bundled("planets/keck")).fingerprint
    event = Event(3.0, 1.0, 6)
    expense = Expense("before", 1, "federated", dataset, "planet", 11, 1.0, event)
    Ledger(home).settle(Ledger(home).reserve(expense, 6.0, 1e-5), expense, 6)
    found = json.loads(astrofed("client", "check", plan, "--site", "keck", "--home", home, "--json")[1])
    assert found["cost"]["epsilon_before"] == epsilon([event], 1e-5)
    code, out, _ = astrofed("client", "check", plan, "--site", "keck", "--home", home, "--set", "privacy.epsilon=1")
    assert code == 2 and "refused: nothing worth training with is left" in out and "left 0" in out
    assert Ledger(home).book().last == 2


def test_a_plan_that_asks_for_too_much_is_refused_with_every_reason(
    astrofed: Command, tmp_path: Path, plan: Path
) -> None:
    home = write(tmp_path / "home", max_rounds=2)
    changes = ("--set", "privacy.epsilon=9", "--set", "privacy.delta=0.1", "--set", "participants.keck.data=nowhere")
    code, out, _ = astrofed("client", "check", plan, "--site", "keck", "--home", home, *changes, "--json")
    found = json.loads(out)
    assert code == 2 and not found["takes_part"] and found["cost"] is None
    assert [reason.split(" ")[0] for reason in found["refused"]] == ["5", "epsilon", "delta"]  # and no data were read
    code, out, _ = astrofed("client", "check", plan, "--site", "keck", "--home", home, "--set", "privacy=")
    assert code == 2 and "refused: differential privacy is required" in out


def test_which_site_and_which_policy_have_to_be_known(astrofed: Command, tmp_path: Path, plan: Path) -> None:
    code, _, error = astrofed("client", "check", plan, "--home", write(tmp_path / "home"))
    assert code == 2 and "--site, one of tess, k2, la_silla, keck" in error
    assert astrofed("client", "check", plan, "--site", "x", "--home", tmp_path / "home")[0] == 2
    code, _, error = astrofed("client", "check", plan, "--site", "keck", "--home", tmp_path / "nowhere")
    assert code == 2 and "--new" in error


def test_a_simulated_participant_may_have_a_policy_of_its_own(
    astrofed: Command, tmp_path: Path, plan: Path, small: dict[str, Any]
) -> None:
    write(tmp_path / "careful", metrics=["loss"], min_units=2)
    run = tmp_path / "run"
    changes = [f"participants.{name}.policy=careful/policy.toml" for name in ("keck", "k2")]
    arguments = [part for change in changes for part in ("--set", change)]
    code, _, error = astrofed("simulate", plan, "--out", run, "--set", "rounds=2", *arguments, "--json")
    assert code == 0, error
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert set(lines[1]["sites"]["keck"]) == {"loss", "num-examples"} and len(lines[1]["sites"]["tess"]) > 5
    assert {each["participant"] for each in lines[-1]["privacy"]} == {"tess", "k2", "la_silla", "keck"}
    strict = write(tmp_path / "strict", epsilon=1.0)
    code, _, error = astrofed("simulate", plan, "--set", f"participants.keck.policy={strict / 'policy.toml'}")
    assert code == 2 and "keck" in error and "epsilon 4 is asked for, at most 1 is allowed" in error


def test_without_a_plan_the_home_is_looked_at_line_by_line(astrofed: Command, tmp_path: Path) -> None:
    code, out, _ = astrofed("client", "check", "--home", tmp_path)
    assert code == 2 and out.startswith("MEND site.toml:") and "astrofed client init" in out
    list(make_home(tmp_path / "home", "keck", "ops", {"planets": resolve_bundled("planets/keck")}))
    code, out, _ = astrofed("client", "check", "--home", tmp_path / "home", "--json")
    found = json.loads(out)
    assert code == 2 and found["ready"] is False and found["home"][0] == {
        "what": "site.toml", "ok": True, "says": "site 'keck', datasets planets, computes on cpu"}  # fmt: skip
    assert [each["what"] for each in found["home"] if not each["ok"]] == ["welcome.json", "policy.toml"]


def test_a_home_says_which_site_and_which_data_a_plan_means(astrofed: Command, tmp_path: Path, plan: Path) -> None:
    home = tmp_path / "home"
    list(make_home(home, "keck", "ops", {"planets": resolve_bundled("planets/keck")}))
    write(home)
    code, out, _ = astrofed("client", "check", plan, "--home", home, "--set", "participants.keck.data=planets")
    assert "MEND welcome.json" in out and "it would take part" in out and code == 2
    code, _, error = astrofed("client", "check", plan, "--home", home, "--set", "participants.keck.data=other")
    assert code == 2 and "no dataset 'other'" in error


@pytest.mark.parametrize(
    ("mode", "section", "parts"),
    [
        ("nas", {"search": {"space": {"model.hidden": [[8], [16]]}}}, ("federated",)),
        ("nas", {"search": {"space": {"model.name": ["mlp", "datacube-net"]}}}, ("federated", "datacube-net")),
        ("evolution", {"evolution": {"keys": {"training.epochs": {"low": 1, "high": 2}}}}, ("single", "federated")),
    ],
)
def test_what_a_search_or_an_evolution_would_send_later_is_refused_at_once(
    astrofed: Command, tmp_path: Path, small: dict[str, Any], mode: str, section: dict[str, Any], parts: tuple[str, ...]
) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(tomli_w.dumps({**small, "mode": mode, **section}))
    home = write(tmp_path / "home", modes=(mode,), privacy="optional")
    code, out, _ = astrofed("client", "check", path, "--site", "keck", "--home", home, "--json")
    refused = json.loads(out)["refused"]
    assert code == 2 and len(refused) == len(parts)
    assert all(f"'{part}'" in reason for part, reason in zip(parts, refused, strict=True)), refused
