"""Scores of planets: known errors give known numbers, absent targets count nothing."""

import math

import numpy as np
import pytest
import torch

from astrofed.client.tasks.planets_catalogue import TARGET_CENTRE, TARGET_WIDTH, Planets
from astrofed.client.tasks.planets_scores import baselines, predict, scores, unit_losses
from astrofed.shared.models.mlp import MLP


def planets(temperatures_k: list[float], radii: list[float], given: list[list[int]]) -> Planets:
    logs = torch.log10(torch.tensor([temperatures_k, radii], dtype=torch.float64)).T
    mask = torch.tensor(given, dtype=torch.float32)
    targets = ((logs - torch.from_numpy(TARGET_CENTRE)) / torch.from_numpy(TARGET_WIDTH)).float() * mask
    names = np.arange(len(given)).astype(np.str_)
    return Planets(torch.zeros(len(given), 16), targets, mask, logs[:, 0], names, names)


def test_errors_are_in_kelvin_earth_radii_dex_and_widths() -> None:
    truth = planets([300.0, 1000.0], [1.0, 10.0], [[1, 1], [1, 1]])
    guess = planets([300.0, 1100.0], [2.0, 10.0], [[1, 1], [1, 1]])
    found = scores(guess.targets, truth)
    assert found["rmse/pl_eqt"] == pytest.approx(100 / math.sqrt(2), rel=1e-4)
    assert found["rmse/pl_rade"] == pytest.approx(1 / math.sqrt(2), rel=1e-4)
    assert found["dex/pl_eqt"] == pytest.approx(math.log10(1.1) / math.sqrt(2), rel=1e-4)
    assert found["dex/pl_rade"] == pytest.approx(math.log10(2) / math.sqrt(2), rel=1e-4)
    widths = math.log10(1.1) / 0.25, math.log10(2) / 0.4
    assert found["loss"] == pytest.approx(math.sqrt((widths[0] ** 2 + widths[1] ** 2) / 4), rel=1e-4)


def test_a_target_that_no_planet_has_has_no_score() -> None:
    truth = planets([300.0, 1000.0], [1.0, 1.0], [[1, 0], [1, 0]])
    found = scores(torch.full((2, 2), 0.3), truth)
    assert set(found) == {"loss", "rmse/pl_eqt", "dex/pl_eqt"}


def test_what_is_predicted_for_absent_targets_does_not_count() -> None:
    truth = planets([300.0, 1000.0], [1.0, 5.0], [[1, 0], [0, 1]])
    guess = torch.full((2, 2), 0.3)
    other = torch.where(truth.given.bool(), guess, 99.0)
    assert scores(guess, truth) == scores(other, truth)
    assert torch.equal(unit_losses(guess, truth.targets, truth.given), unit_losses(other, truth.targets, truth.given))


def test_a_planets_loss_is_half_the_sum_of_its_squared_errors() -> None:
    losses = unit_losses(torch.tensor([[1.0, 2.0], [3.0, 9.0]]), torch.zeros(2, 2), torch.tensor([[1.0, 1], [1, 0]]))
    assert losses.tolist() == [2.5, 4.5]


def test_a_wrecked_models_scores_are_bad_but_finite() -> None:
    truth = planets([300.0, 1000.0], [1.0, 10.0], [[1, 1], [1, 1]])
    for guess in (torch.full((2, 2), 1e18), torch.full((2, 2), -1e18)):
        assert all(math.isfinite(value) for value in scores(guess, truth).values())


def test_baselines_are_the_constant_and_the_formula() -> None:
    truth = planets([300.0, 1000.0], [3.0, 10.0], [[1, 1], [1, 1]])
    constant, formula = (scores(guess, truth) for guess in baselines(truth).values())
    assert list(baselines(truth)) == ["constant", "zero-albedo"]
    assert constant["rmse/pl_eqt"] == pytest.approx(math.sqrt((500**2 + 200**2) / 2), rel=1e-4)
    assert constant["rmse/pl_rade"] == formula["rmse/pl_rade"] == pytest.approx(7 / math.sqrt(2), rel=1e-4)
    assert formula["rmse/pl_eqt"] == pytest.approx(0, abs=1e-3)  # here the truth is the formula's


def test_predicting_leaves_no_graph_and_the_model_in_evaluation_mode() -> None:
    model = MLP(16, 2).train()
    guess = predict(model, planets([300.0], [1.0], [[1, 1]]))
    assert guess.shape == (1, 2) and not guess.requires_grad and not model.training
