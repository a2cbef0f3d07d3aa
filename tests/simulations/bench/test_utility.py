"""The utility bench compares like with like: same rows, same settings, same epsilon; its accuracies are not tested."""

import json
from dataclasses import replace

import pytest
import torch

from astrofed.shared.plan import load_plan
from astrofed.simulations.bench import utility, utility_digits
from astrofed.simulations.bench.result import this_machine
from astrofed.simulations.bench.utility import UtilityResult, UtilityRow, digits_plan, planets_plan, shared_plan
from astrofed.simulations.bench.utility_central import train_by_opacus
from astrofed.simulations.compatibility import check_plan

pytest.importorskip("sklearn")


def test_sites_share_the_training_images_that_opacus_gets_whole() -> None:
    (images, labels), (tests, _) = utility_digits.split(4)
    assert len(images) == len(labels) == 1437 and len(tests) == 360
    again, other = utility_digits.split(4)[0][0], utility_digits.split(5)[0][0]
    assert torch.equal(images, again) and not torch.equal(images, other)


def test_both_plans_can_run_and_bound_epsilon() -> None:
    for plan in (digits_plan(1.0, 1), planets_plan(3.0, 1)):
        assert plan.privacy is not None and plan.privacy.delta == utility.DELTA
        assert any("epsilon at most" in line for line in check_plan(plan))
    shared = check_plan(shared_plan(digits_plan(1.0, 1), 1.0))
    assert any("noise is shared by 3 participants" in line for line in shared)


def test_digits_federated_and_central_spend_no_more_than_epsilon() -> None:
    for row, noise in zip(utility.digits_rows(8.0, (1,)), ("own", "shared"), strict=True):
        assert row.noise == noise and 7.5 < row.spent <= 8.01
        assert len(row.federated) == len(row.central) == 1 and min(*row.federated, *row.central) > 50


def test_opacus_trains_by_the_plans_settings() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(40, 64, generator=generator), torch.randint(10, (40,), generator=generator)
    model = utility_digits.DigitsLinear()
    plan = load_plan({**digits_plan(8.0, 1).to_dict(), "rounds": 2})
    spent = train_by_opacus(model, rows, utility_digits.cross_entropy, plan)
    assert 7.0 < spent <= 8.0 and float(model.layer.weight.detach().norm()) > 0 and not model.training


def test_what_is_behind_is_in_points_or_a_share_of_the_error() -> None:
    accuracy = UtilityRow("digits", "own", 1.0, "accuracy, %", (90.0, 91.0), (91.0, 92.0), 1.0)
    error = UtilityRow("planets", "own", 1.0, "error, widths", (0.66,), (0.6,), 1.0)
    assert accuracy.behind == pytest.approx(1.0) and accuracy.met
    assert error.behind == pytest.approx(0.1) and not error.met
    result = UtilityResult(this_machine(), (accuracy, error))
    assert json.loads(json.dumps(result.to_dict()))["met"] is False and result.table().row_count == 2
    shared = replace(error, noise="shared", federated=(0.6,))  # one kind of noise is enough
    assert UtilityResult(this_machine(), (accuracy, error, shared)).to_dict()["met"] is True
