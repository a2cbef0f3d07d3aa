"""Scales: learned units and back, and what a site measures on its training months."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from astrofed.client.tasks.datacube_scales import (
    CHANGE,
    FIELD,
    MEAN,
    ConstantVariable,
    Scales,
    ScalesMissingError,
    area_weights,
    learned_fields,
    site_scales,
    to_si,
)
from astrofed.simulations.synthetic import synthetic_world

LAT = np.array([60.0, 0.0, -60.0])  # areas 1/2, 1, 1/2, scaled to a mean of 1: 3/4, 3/2, 3/4
ALL = [(month, epoch) for month in range(6) for epoch in range(2)]


def fields(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """[variable, climate_time, geological_time] spread over a grid of 2 levels, 3 latitudes, 4 longitudes."""
    return np.broadcast_to(values[..., None, None, None], (*values.shape, 2, 3, 4)).astype(np.float32)


def test_cells_count_by_their_area() -> None:
    np.testing.assert_allclose(area_weights(LAT), [0.75, 1.5, 0.75])


def test_learned_units_hold_every_variable_at_its_place() -> None:
    cube = synthetic_world(1, lev=3, lat=4, lon=5, climate_time=6)
    learned = learned_fields(cube, ("ua", "hus", "ps"))
    assert learned.shape == (3, 6, 2, 3, 4, 5)
    np.testing.assert_array_equal(learned[0, 4, 1], cube.fields["ua"][1, 4])
    np.testing.assert_allclose(learned[1, 4, 1], cube.fields["hus"][1, 4] ** 0.25, rtol=1e-6)
    np.testing.assert_array_equal(learned[2, 4, 1, 2], cube.fields["ps"][1, 4])


def test_learned_units_turn_back_to_si() -> None:
    cube = synthetic_world(1, lev=3, lat=4, lon=5, climate_time=6)
    names = ("ua", "hus", "ps")
    learned = torch.from_numpy(learned_fields(cube, names))
    si = to_si(learned[None], names)[0]
    np.testing.assert_allclose(si[1, 2, 1], cube.fields["hus"][1, 2], rtol=1e-5)
    assert torch.equal(si[[0, 2]], learned[[0, 2]])


def test_a_prediction_below_zero_is_no_humidity() -> None:
    """The fourth power of −0.1 would be wet air."""
    assert to_si(torch.tensor([[[-0.1, 0.1]]]), ("hus",)).flatten().tolist() == pytest.approx([0, 1e-4])


def test_scales_of_a_field_that_rises_month_by_month() -> None:
    """x = 2 · month: mean 5, standard deviation √(35/3), change 2; nothing varies in space."""
    scales = site_scales(fields(2.0 * np.arange(6)[None, :, None] * np.ones((1, 1, 2))), ALL, LAT, ("ta",), "a")
    np.testing.assert_allclose(scales[MEAN], 5.0)
    np.testing.assert_allclose(scales[FIELD], np.sqrt(35 / 3))
    np.testing.assert_allclose(scales[CHANGE], 2.0)
    assert scales[MEAN].shape == (1, 2)


def test_scales_weigh_cells_by_area_and_levels_apart() -> None:
    """A pattern of 1 at the equator and 0 at 60°, times the month, twice as much on the second level."""
    months = np.arange(6.0)
    pattern = np.array([[0.0, 1, 0], [0, 2, 0]])[:, :, None] * np.ones(4)
    values = (months[None, :, None, None, None, None] * pattern + np.zeros((1, 6, 2, 1, 1, 1))).astype(np.float32)
    scales = site_scales(values, ALL, LAT, ("ta",), "a")
    np.testing.assert_allclose(scales[MEAN], [[2.5 / 2, 2.5]])
    np.testing.assert_allclose(scales[CHANGE], [[np.sqrt(1 / 2), np.sqrt(4 / 2)]])
    mean_square = np.mean(months**2) / 2
    np.testing.assert_allclose(scales[FIELD], np.sqrt(mean_square - 1.25**2) * np.array([[1, 2]]), rtol=1e-6)


def test_months_that_are_not_allowed_count_nowhere() -> None:
    """Not even for the step into an allowed month from a hidden one."""
    values = np.ones((1, 1, 2)) * np.arange(6.0)[None, :, None]
    values[0, 3:, 1] = 1e6
    allowed = [(month, epoch) for month, epoch in ALL if not (month >= 3 and epoch == 1)]
    scales = site_scales(fields(values), allowed, LAT, ("ta",), "a")
    np.testing.assert_allclose(scales[CHANGE], 1.0)
    np.testing.assert_allclose(scales[MEAN], (15 + 3) / 9)


def test_the_northward_wind_is_centred_on_zero() -> None:
    """Else mirroring a world, which changes its sign, would not be a symmetry of the standardised fields."""
    values = np.stack((np.arange(6.0), np.arange(6.0)))[:, :, None] * np.ones((1, 1, 2)) + 10
    scales = site_scales(fields(values), ALL, LAT, ("ua", "va"), "a")
    np.testing.assert_allclose(scales[MEAN], [[12.5, 12.5], [0, 0]])
    np.testing.assert_allclose(scales[FIELD][0], scales[FIELD][1])


@pytest.mark.parametrize(
    "values", [np.zeros((2, 6, 2)), np.stack((np.arange(6.0), np.ones(6)))[:, :, None] * np.ones((1, 1, 2))]
)
def test_a_variable_that_never_changes_is_named(values: NDArray[np.float64]) -> None:
    with pytest.raises(ConstantVariable, match=r"^site a: (ta|sic) never changes .* leave it out of task\.variables"):
        site_scales(fields(values), ALL, LAT, ("ta", "sic"), "site a")


def test_pooled_scales_stand_ready_for_the_tensors_axes() -> None:
    statistics = {key: np.full((3, 2), value) for key, value in ((MEAN, 1.0), (FIELD, 2.0), (CHANGE, 3.0))}
    scales = Scales.pooled(statistics)
    assert scales.change.shape == (3, 1, 1, 2, 1, 1) and float(scales.change.mean()) == 3.0
    del statistics[FIELD]
    with pytest.raises(ScalesMissingError, match="lack median:field/scale; they hold"):
        Scales.pooled(statistics)
