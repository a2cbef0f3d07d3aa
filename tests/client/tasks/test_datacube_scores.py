"""Scores: area-weighted errors by variable and level in SI, and the headline number."""

import numpy as np
import pytest
import torch
from torch import Tensor

from astrofed.client.tasks.datacube_scales import Scales, area_weights
from astrofed.client.tasks.datacube_scores import Scores, area_loss

AREA = torch.from_numpy(area_weights(np.array([60.0, 0.0, -60.0])).astype(np.float32))[:, None]
SHAPE = (1, 2, 2, 3, 4)  # climate_time, geological_time, lev, lat, lon


def scores(variables: tuple[str, ...], change: float = 1.0) -> Scores:
    ones = torch.ones(len(variables), 1, 1, 2, 1, 1)
    return Scores(variables, AREA, Scales(mean=0 * ones, field=ones, change=change * ones))


def zeros(variables: int = 1) -> Tensor:
    return torch.zeros(variables, *SHAPE)


def test_an_error_at_the_equator_counts_by_its_area() -> None:
    """2 K wrong at the equator, right at ±60°: √(2² · 1 / (1/2 + 1 + 1/2)) = √2 K."""
    found, wrong = scores(("ta",), change=0.5), zeros()
    wrong[..., 1, :] = 2.0
    found.add(wrong, zeros(), (0, 1))
    assert found.physical(levels=False) == pytest.approx({"ta": np.sqrt(2)})
    assert found.headline() == pytest.approx(2 * np.sqrt(2)), "in units of the change"


def test_levels_are_told_apart_where_a_variable_has_them() -> None:
    found, wrong = scores(("ua", "ps")), zeros(2)
    wrong[:, :, :, 1] = 3.0
    found.add(wrong, zeros(2), (0, 1))
    physical = found.physical(levels=True)
    assert physical == pytest.approx({"ua": 3 / np.sqrt(2), "ua/0": 0.0, "ua/1": 3.0, "ps": 3 / np.sqrt(2)})
    assert found.physical(levels=False).keys() == {"ua", "ps"}


def test_humidity_is_scored_in_kilograms() -> None:
    """Learned as a fourth root: 0.3 against 0.2 is 81e-4 − 16e-4 kg/kg, and not 0.1."""
    found = scores(("hus",), change=0.05)
    found.add(zeros() + 0.3, zeros() + 0.2, (0,))
    assert found.physical(levels=False)["hus"] == pytest.approx(65e-4, rel=1e-5)
    assert found.headline() == pytest.approx(2.0, rel=1e-5)


def test_only_scored_epochs_count() -> None:
    found, wrong = scores(("ta",)), zeros()
    wrong[:, :, 0] = 1e6
    wrong[:, :, 1] = 1.0
    found.add(wrong, zeros(), (1,))
    assert found.headline() == pytest.approx(1.0)


def test_samples_count_alike_before_the_root_is_taken() -> None:
    found = scores(("ta",))
    found.add(zeros() + 3.0, zeros(), (0,))
    found.add(zeros() + 4.0, zeros(), (0, 1))
    assert found.headline() == pytest.approx(np.sqrt((9 + 16) / 2))
    assert found.physical(levels=False)["ta"] == pytest.approx(np.sqrt((9 + 16) / 2))


def test_the_training_loss_weighs_as_the_scores_do() -> None:
    error = zeros()
    error[..., 1, :] = 2.0
    assert float(area_loss(error, AREA)) == pytest.approx(2.0)
