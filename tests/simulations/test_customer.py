"""Mode 'customer': the customer's own model, what is told of it, and the one command from a folder to a report."""

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from safetensors.torch import load_file
from typer.testing import CliRunner

from astrofed.cli import app
from astrofed.client.app import open_task
from astrofed.client.customer import CustomerTask
from astrofed.client.meta.keeping import MODEL, SCORES
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import PlanError, load_plan
from astrofed.simulations.bundled import resolve_bundled
from astrofed.simulations.compatibility import check_plan
from astrofed.simulations.simulate import simulate


@pytest.fixture
def joint(small: dict[str, Any]) -> dict[str, Any]:
    return {**small, "mode": "customer", "customer": {"site": "k2", "epochs": 3}, "evaluate_every": 4}


def test_the_customers_own_model_stays_at_its_site(tmp_path: Path, joint: dict[str, Any]) -> None:
    result = simulate(joint, out=tmp_path / "run")
    told = result.rounds[-1].sites
    assert {name for name, metrics in told.items() if "adapted/loss" in metrics} == {"k2"}
    homes = tmp_path / "run" / "sites"
    assert [path.parent.name for path in homes.glob(f"*/{MODEL}")] == ["k2"]
    kept = json.loads((homes / "k2" / SCORES).read_text())
    assert kept["after"]["loss"] == told["k2"]["adapted/loss"] != kept["before"]["loss"] == told["k2"]["loss"]
    own = build_model(result.plan)
    own.load_state_dict(load_file(homes / "k2" / MODEL))
    plain = simulate({**joint, "mode": "federated", "customer": {}}, out=tmp_path / "plain")
    assert plain.model_path.read_bytes() == result.model_path.read_bytes()  # the shared model is what it would be
    assert "its own model" in result.report.read_text()


def test_with_privacy_the_own_models_scores_stay_too(tmp_path: Path, joint: dict[str, Any]) -> None:
    joint |= {"rounds": 1, "privacy": {"unit": "planet", "noise_multiplier": 1.0, "delta": 1e-5}}
    result = simulate(joint, out=tmp_path / "run")
    assert not any("adapted/loss" in metrics for metrics in result.rounds[-1].sites.values())
    spent = {each.participant: each.epsilon for each in result.privacy}
    homes = tmp_path / "run" / "sites"
    assert (homes / "k2" / SCORES).is_file() and len(spent) == 4  # the own model's training is charged to nobody
    ledger = simulate({**joint, "mode": "federated"}, out=tmp_path / "plain")
    assert spent["k2"] == pytest.approx({e.participant: e.epsilon for e in ledger.privacy}["k2"])


def test_the_customer_is_the_last_site_or_who_the_plan_says(joint: dict[str, Any]) -> None:
    assert load_plan({**joint, "customer": {}}).customer_site == "keck"
    with pytest.raises(PlanError, match=r"customer\.site: 'nasa' is no training participant; they are: tess, k2"):
        load_plan({**joint, "customer": {"site": "nasa"}})
    assert any("k2 gets a model of its own" in line for line in check_plan(load_plan(joint)))
    plan = load_plan(joint)
    from astrofed.simulations.sites import open_simulated_site

    kinds = [isinstance(open_task(plan, open_simulated_site(plan, index, None)), CustomerTask) for index in range(4)]
    assert kinds == [False, True, False, False]


@pytest.mark.parametrize("epsilon", [None, "8"])
def test_one_command_from_a_folder_to_a_report(tmp_path: Path, joint: dict[str, Any], epsilon: str | None) -> None:
    plan, site = tmp_path / "plan.toml", tmp_path / "our site"
    joint |= {"rounds": 2, "evaluate_every": 2}
    plan.write_text(tomli_w.dumps(joint))
    source = str(resolve_bundled("planets/kepler"))
    privacy = ["--epsilon", epsilon] if epsilon else []
    options = ["--out", str(site), "--plan", str(plan), "--name", "our site", "--train", "--json", *privacy]
    done = CliRunner().invoke(app, ["data", "import", source, *options])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["task"] == "planets" and 0.5 < told["quality"]["score"] <= 1 and told["own"]["loss"] > 0
    text = (site / "intake.md").read_text()
    for words in (
        "## Quality",
        "the platform's model",
        "your own model",
        "baseline: zero-albedo",
        "What your site allows",
    ):
        assert words in text, words
    assert ("epsilon" in text.partition("Spent of your privacy budget")[2]) == (epsilon is not None)
    assert load_plan(site / "plan.toml").customer_site == "our site"


def test_a_plan_for_other_data_is_refused(tmp_path: Path, joint: dict[str, Any]) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(tomli_w.dumps({**joint, "mode": "federated", "customer": {}}))
    source = str(resolve_bundled("planets/keck"))
    done = CliRunner().invoke(app, ["data", "import", source, "--out", str(tmp_path / "s"), "--plan", str(plan)])
    assert done.exit_code != 0 and "'federated' has no customer" in str(done.exception)
    done = CliRunner().invoke(app, ["data", "import", source, "--out", str(tmp_path / "t"), "--train"])
    assert done.exit_code != 0 and "--train: there is nothing to train by" in str(done.exception)
