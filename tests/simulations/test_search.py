"""Mode "nas" from its plan to its report: candidates trained by the federation, the winner from scratch, resumed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import astrofed
from astrofed.server.app import Silent
from astrofed.server.federation import Interrupted
from astrofed.server.record import OtherPlan, RunExists, read_record
from astrofed.shared.plan import PlanError, load_plan
from astrofed.simulations.compatibility import check_plan


@pytest.fixture
def plan(small: dict[str, Any]) -> dict[str, Any]:
    """A search over four candidates on three observatories; a fourth tests the winner."""
    small["participants"][3]["role"] = "evaluate"
    space = {"model.hidden": [[4], [32]], "training.learning_rate": [1e-5, 1e-2]}
    search = {"space": space, "candidates": 4, "population": 4, "algorithm": "random", "rungs": [1, 2], "keep": 0.5}
    return small | {"mode": "nas", "rounds": 3, "search": search}


def _candidate(run: Path, number: int) -> Path:
    return run / "search" / "candidates" / f"{number:04d}"


def test_the_winner_is_trained_from_scratch_and_tested_on_unseen_data(plan: dict[str, Any], tmp_path: Path) -> None:
    result = astrofed.simulate(plan, out=tmp_path / "run")
    found = result.to_dict()["search"]
    winner = next(trial for trial in found["trials"] if trial["number"] == found["winner"])
    assert winner["choices"]["training.learning_rate"] == 1e-2
    assert result.plan.training.learning_rate == 1e-2
    assert list(result.plan.model.options["hidden"]) == list(winner["choices"]["model.hidden"])
    assert len(result.rounds) == 4
    assert "unseen/loss" in result.metrics
    asked = [entry.unseen for number in (1, 2) for entry in read_record(_candidate(result.run, number))[1]]
    assert asked
    assert not any(asked), "who tests the winner was asked about a candidate"
    assert found["rounds"] == 2 * 1 + 2 * 2
    losses = {trial["number"]: trial["loss"] for trial in found["trials"]}
    assert found["front"] == sorted(found["front"], key=losses.__getitem__)
    page = result.report.read_text()
    assert "Architecture search" in page
    assert "Pareto front" in page


def test_a_search_that_was_stopped_goes_on_to_the_same_model(
    plan: dict[str, Any], stop_after: Callable[[int], Silent], tmp_path: Path
) -> None:
    whole = astrofed.simulate(plan, out=tmp_path / "whole")
    for lines in (2, 5):
        with pytest.raises(Interrupted):
            astrofed.simulate(plan, out=tmp_path / "parts", resume=lines == 5, observer=stop_after(lines))
    parts = astrofed.simulate(plan, out=tmp_path / "parts", resume=True)
    assert parts.model_path.read_bytes() == whole.model_path.read_bytes()
    trials = [json.loads(line) for line in (tmp_path / "parts/search/trials.jsonl").read_text().splitlines()]
    assert len(trials) == 6


def test_another_plan_or_a_full_folder_is_refused(plan: dict[str, Any], tmp_path: Path) -> None:
    astrofed.simulate(plan, out=tmp_path / "run")
    with pytest.raises(RunExists):
        astrofed.simulate(plan, out=tmp_path / "run")
    with pytest.raises(OtherPlan, match="search"):
        astrofed.simulate(plan | {"search": plan["search"] | {"keep": 1.0}}, out=tmp_path / "run", resume=True)


def test_every_candidate_is_charged_to_the_ledger(plan: dict[str, Any], tmp_path: Path) -> None:
    private = {"unit": "planet", "noise_multiplier": 2.0, "delta": 1e-5}
    result = astrofed.simulate(plan | {"privacy": private, "training": {"optimizer": "sgd"}}, out=tmp_path / "run")
    alone = astrofed.simulate(
        plan | {"privacy": private, "training": {"optimizer": "sgd"}, "mode": "federated", "search": None},
        out=tmp_path / "alone",
    )
    epsilons = [max(spent.epsilon for spent in found.privacy) for found in (result, alone)]
    assert epsilons[0] > 1.3 * epsilons[1]
    last = read_record(_candidate(tmp_path / "run", 4))[1][-1].privacy
    assert 0 < max(spent.epsilon for spent in last) < epsilons[0]


def test_a_differentiable_search_chooses_what_learns(plan: dict[str, Any], tmp_path: Path) -> None:
    search = {"algorithm": "differentiable", "space": {"model.hidden": [[1], [64]]}}
    training = {"batch_size": 16, "learning_rate": 0.01, "optimizer": "adam"}
    plan |= {"search": search, "training": training, "rounds": 6}
    result = astrofed.simulate(plan, out=tmp_path / "run")
    found = result.to_dict()["search"]
    assert sum(item["share"] for item in found["shares"]) == pytest.approx(1)
    assert list(result.plan.model.options["hidden"]) == [64]
    assert "mixed by shares" in result.report.read_text()
    again = astrofed.simulate(plan, out=tmp_path / "run", resume=True)
    assert again.to_dict()["search"] == found
    with pytest.raises(PlanError, match="2 to 16"):
        check_plan(load_plan(plan | {"search": search | {"space": {"model.hidden": [[n] for n in range(1, 20)]}}}))
    with pytest.raises(PlanError, match="trained alike"):
        check_plan(load_plan(plan | {"search": search | {"space": {"training.batch_size": [4, 8]}}}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search": None}, "needs it"),
        ({"mode": "federated"}, "belongs to mode = 'nas'"),
        ({"privacy": {"unit": "planet", "epsilon": 8, "delta": 1e-5}}, "noise_multiplier"),
    ],
)
def test_plans_that_make_no_sense_are_refused(plan: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_plan(load_plan(plan | change))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"rounds": [1, 2]}, "can't be searched"),
        ({"model.hidden": [[4], [0]]}, "can't be built"),
        ({"model.hiden": [[4]]}, "did you mean 'hidden'"),
        ({"training.batch_size": [4, 4]}, "stands twice"),
    ],
)
def test_spaces_that_hold_no_candidates_are_refused(plan: dict[str, Any], space: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_plan(load_plan(plan | {"search": plan["search"] | {"space": space}}))
