"""Honest private training shows less than its ledger says, and every planted bug shows more."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from astrofed.client.privacy import dpsgd, protection
from astrofed.client.privacy.dpsgd import sampling
from astrofed.commands.bench import app
from astrofed.shared.plan import Training
from astrofed.simulations.audit.bound import Bound
from astrofed.simulations.audit.canaries import Canaries, Parallel, coins
from astrofed.simulations.audit.cases import CASES, Case, Finding
from astrofed.simulations.audit.central import CENTRAL_CASES, CentralCase
from astrofed.simulations.audit.planted import PLANTED, Planted
from astrofed.simulations.audit.planted_trees import PLANTED_TREES
from astrofed.simulations.audit.result import AuditResult
from astrofed.simulations.audit.shared import PLANTED_SHARED, SHARED_CASES
from astrofed.simulations.bench.result import this_machine

pytestmark = pytest.mark.usefixtures("_seeded")


@pytest.mark.parametrize(
    "case", (*CASES, *SHARED_CASES, *CENTRAL_CASES), ids=lambda case: f"{case.name}, epsilon {case.epsilon:g}"
)
def test_honest_training_shows_something_but_less_than_the_ledger_says(case: Case | CentralCase) -> None:
    found = replace(case, side=case.side // 2).find(1)
    assert found.sound and 0 <= found.measured.epsilon < found.accounted <= case.epsilon
    if case.epsilon >= 4 and not getattr(case, "alone", False):
        assert found.measured.epsilon > 0.1  # the attack is not blind


@pytest.mark.parametrize("bug", (*PLANTED, *PLANTED_SHARED, *PLANTED_TREES), ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught_and_taken_out_again(bug: Planted) -> None:
    right = getattr(bug.where, bug.attribute)
    with bug.planted():
        found = bug.case.find(1)
    assert not found.sound, f"{found.measured} is no more than {found.accounted}"
    assert getattr(bug.where, bug.attribute) is right


@pytest.mark.parametrize("bug", (*PLANTED, *PLANTED_SHARED, *PLANTED_TREES), ids=lambda bug: bug.name)
def test_where_a_bug_is_caught_the_same_training_without_it_is_not(bug: Planted) -> None:
    assert replace(bug.case, side=min(bug.case.side, 48)).find(1).sound


def test_more_steps_than_are_charged_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def fewer(training: Training, units: int) -> tuple[float, int]:
        rate, steps = sampling(training, units)
        return rate / 5, steps  # what is charged; what is done is below

    def as_before(*arguments: object) -> None:
        *first, mechanism = arguments
        assert isinstance(mechanism, dpsgd.Mechanism)
        event = replace(mechanism.event, sample_rate=5 * mechanism.event.sample_rate)
        dpsgd.train_privately(*first, replace(mechanism, event=event))  # type: ignore[arg-type]

    case = Case("a fifth of the rate is charged", 1.0, epochs=3, batch=0.2)
    assert case.find(1).sound
    monkeypatch.setattr(protection, "sampling", fewer)
    monkeypatch.setattr(protection, "train_privately", as_before)
    assert not case.find(1).sound


def test_each_canary_has_a_coordinate_of_its_own() -> None:
    canaries = Canaries(3, 2, coins(9, 4))
    population, model = canaries.population(), Parallel(3, 2)
    assert len(population) == 9
    for number in range(9):
        pieces = list(population.gradients(model, np.array([number])))
        total = [torch.zeros_like(parameter) for parameter in model.parameters()]
        for piece in pieces:
            piece.add_weighted((piece.squares > 0).to(piece.squares), total)
        assert bool(pieces) == canaries.present[number]
        for layer in total if pieces else ():
            assert np.flatnonzero(layer.numpy()).tolist() == [number]


def test_the_verdict_is_about_all_that_was_found() -> None:
    sound, unsound = (Finding("case", 100, 1.0, Bound(value, 9, 10)) for value in (0.5, 1.5))
    result = AuditResult(this_machine(), (sound,), (("bug", unsound),), (), 1.0, {})
    assert result.met is True and json.loads(json.dumps(result.to_dict()))["planted"][0]["caught"] is True
    assert replace(result, honest=(unsound,)).met is False and replace(result, planted=(("bug", sound),)).met is False


def test_two_measurements_at_once_are_refused() -> None:
    done = CliRunner().invoke(app, ["privacy", "--audit", "--utility"])
    assert done.exit_code == 2 and "--utility and --audit" in done.output
