"""Mode "evolution" from its plan to its report: members trained on islands, weights passed on, resumed, charged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import astrofed
from astrofed.server.app import Silent
from astrofed.server.checkpoint import digest_of, load_arrays
from astrofed.server.federation import Interrupted
from astrofed.server.record import OtherPlan, RunExists, read_plan, read_record, verify_run
from astrofed.shared.plan import PlanError, load_plan
from astrofed.simulations.compatibility import check_plan


@pytest.fixture
def plan(small: dict[str, Any]) -> dict[str, Any]:
    """Three observatories as islands of two members; a fourth tests the winner."""
    small["participants"][3]["role"] = "evaluate"
    keys = {"training.learning_rate": {"low": 1e-4, "high": 1e-1}, "training.weight_decay": {"low": 1e-3, "high": 1.0}}
    evolution = {"keys": keys, "population": 2, "generations": 3, "exploit": 0.5, "migrate_every": 1}
    return small | {"mode": "evolution", "rounds": 2, "evolution": evolution}


def _folder(run: Path, place: dict[str, int]) -> Path:
    return run / "evolution" / f"island-{place['island']:02d}" / f"{place['generation']:03d}-{place['member']:02d}"


def test_members_begin_with_their_parents_weights_and_the_run_with_the_winners(
    plan: dict[str, Any], tmp_path: Path
) -> None:
    result = astrofed.simulate(plan, out=tmp_path / "run")
    found = result.to_dict()["evolution"]
    assert found["islands"] == [["tess"], ["k2"], ["la_silla"]]
    assert len(found["lives"]) == 3 * 2 * 3
    assert found["rounds"] == 18
    for life in found["lives"]:
        folder = _folder(result.run, life["place"])
        start, rounds = read_record(folder)
        assert start is not None
        assert [site.participant for site in start.enrolled] == found["islands"][life["place"]["island"] - 1]
        assert rounds[-1].loss == life["loss"]
        assert read_plan(folder).training.learning_rate == life["values"]["training.learning_rate"]
        parent = life["parent"]
        expected = None if parent is None else digest_of(load_arrays(_folder(result.run, parent) / "model.safetensors"))
        assert start.initial_sha256 == expected
    champions = found["champions"]
    winner = min(champions, key=lambda champion: champion["loss"])
    assert winner["life"]["place"]["island"] == found["winner"]
    assert result.plan.training.learning_rate == winner["life"]["values"]["training.learning_rate"]
    assert result.rounds[0].loss == winner["loss"] < found["before"]
    assert "unseen/loss" in result.metrics
    page = result.report.read_text()
    assert "Evolution" in page and "Members that moved" in page and "tess to k2" in page
    verify_run(result.run)


def test_an_evolution_that_was_stopped_goes_on_to_the_same_model(
    plan: dict[str, Any], stop_after: Callable[[int], Silent], tmp_path: Path
) -> None:
    whole = astrofed.simulate(plan, out=tmp_path / "whole")
    for number, lines in enumerate((3, 9, 6)):
        with pytest.raises(Interrupted):
            astrofed.simulate(plan, out=tmp_path / "parts", resume=number > 0, observer=stop_after(lines))
    parts = astrofed.simulate(plan, out=tmp_path / "parts", resume=True)
    assert parts.model_path.read_bytes() == whole.model_path.read_bytes()
    lines_ = [json.loads(line) for line in (tmp_path / "parts/evolution/lives.jsonl").read_text().splitlines()]
    assert lines_ == whole.to_dict()["evolution"]["lives"]


def test_without_islands_all_sites_train_each_member(plan: dict[str, Any], tmp_path: Path) -> None:
    plan["evolution"] |= {"islands": False, "generations": 2}
    result = astrofed.simulate(plan, out=tmp_path / "run")
    found = result.to_dict()["evolution"]
    assert found["islands"] == [["tess", "k2", "la_silla"]]
    start, rounds = read_record(_folder(result.run, found["lives"][0]["place"]))
    assert start is not None and len(start.enrolled) == 3 and rounds[1].accepted == ("tess", "k2", "la_silla")
    assert found["champions"][0]["loss"] == found["champions"][0]["life"]["loss"] == result.rounds[0].loss


def test_a_member_alone_on_its_island_is_the_same_as_a_plain_run_from_its_weights(
    plan: dict[str, Any], tmp_path: Path
) -> None:
    result = astrofed.simulate(plan, out=tmp_path / "run")
    place = {"island": 1, "generation": 1, "member": 1}
    own = read_plan(_folder(result.run, place))
    alone = astrofed.simulate(own, out=tmp_path / "alone")
    ours = load_arrays(_folder(result.run, place) / "model.safetensors")
    for name, array in load_arrays(alone.model_path).items():
        np.testing.assert_array_equal(array, ours[name])


def test_another_plan_or_a_full_folder_is_refused(plan: dict[str, Any], tmp_path: Path) -> None:
    plan["evolution"]["generations"] = 1
    astrofed.simulate(plan, out=tmp_path / "run")
    with pytest.raises(RunExists):
        astrofed.simulate(plan, out=tmp_path / "run")
    with pytest.raises(OtherPlan, match="evolution"):
        changed = plan | {"evolution": plan["evolution"] | {"perturb": 0.5}}
        astrofed.simulate(changed, out=tmp_path / "run", resume=True)


def test_every_member_is_charged_to_its_islands_ledger(plan: dict[str, Any], tmp_path: Path) -> None:
    plan["evolution"]["generations"] = 1
    plan["participants"] = plan["participants"][1:3]
    plan |= {"privacy": {"unit": "planet", "noise_multiplier": 2.0, "delta": 1e-5}, "training": {"optimizer": "sgd"}}
    result = astrofed.simulate(plan, out=tmp_path / "run")
    alone = astrofed.simulate(plan | {"mode": "federated", "evolution": None}, out=tmp_path / "alone")
    for own, other in zip(result.privacy, alone.privacy, strict=True):
        assert own.participant == other.participant
        assert own.epsilon > 1.2 * other.epsilon
    assert any("its island's ledgers" in line for line in check_plan(load_plan(plan)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evolution": None}, "needs it"),
        ({"mode": "federated"}, "belongs to mode = 'evolution'"),
        ({"privacy": {"unit": "planet", "epsilon": 8, "delta": 1e-5}}, "noise_multiplier"),
    ],
)
def test_plans_that_make_no_sense_are_refused(plan: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_plan(load_plan(plan | change))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model.hidden": {"low": 1, "high": 2}}, "can't evolve"),
        ({"training.decay": {"low": 0.1, "high": 1.0}}, "schedules"),
        ({"training.learning_rat": {"low": 0.1, "high": 1.0}}, "did you mean 'learning_rate'"),
        ({"training.learning_rate": {"low": 1.0, "high": 0.1}}, "below high"),
        ({"training.weight_decay": {"low": 0.0, "high": 0.1}}, "scale = 'linear'"),
        ({"training.weight_decay": {"low": -1.0, "high": 0.1, "scale": "linear"}}, "can't be trained"),
    ],
)
def test_keys_that_cannot_evolve_are_refused(plan: dict[str, Any], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_plan(load_plan(plan | {"evolution": plan["evolution"] | {"keys": keys}}))


def test_a_member_that_diverges_is_replaced(plan: dict[str, Any], tmp_path: Path) -> None:
    plan["participants"] = plan["participants"][:1]
    keys = {"training.learning_rate": {"low": 1e-3, "high": 1e30}}
    plan["evolution"] = plan["evolution"] | {"keys": keys, "generations": 2, "population": 3}
    plan["training"] = plan["training"] | {"optimizer": "sgd"}
    found = astrofed.simulate(plan, out=tmp_path / "run").to_dict()["evolution"]
    failed = [life for life in found["lives"] if life["place"]["generation"] == 1 and life["loss"] is None]
    assert failed
    for life in failed:
        again = next(
            new
            for new in found["lives"]
            if new["place"]["generation"] == 2 and new["place"]["member"] == life["place"]["member"]
        )
        assert again["origin"] == "copied" and again["parent"] != life["place"]
