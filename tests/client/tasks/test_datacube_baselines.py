"""Baselines: each against its own definition, and the federated ridge against one fit over all the cells at once."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from astrofed.client.data.cube import Cube, build_cube
from astrofed.client.tasks.datacube_baselines import (
    CROSS,
    GRAM,
    PENALTY,
    climatology,
    persistence,
    pooled_ridge,
    ridge,
    ridge_coefficients,
    ridge_equations,
)
from astrofed.client.tasks.datacube_samples import Sample, World
from astrofed.client.tasks.datacube_scales import area_weights
from astrofed.shared.models.datacube_layout import DatacubeLayout
from astrofed.simulations.synthetic import synthetic_world

LAYOUT = DatacubeLayout(variables=("ta", "hus", "ps"), months_in=2, months_out=2)
SAMPLES = [Sample(2, (0, 1), (0, 1)), Sample(5, (0,), (0,))]
NOMINAL = np.array([30.0, 0.1, 8e3])  # VARIABLES' spreads


def noisy(seed: int) -> Cube:
    """A synthetic world with weather, so that its fields are linearly independent of each other."""
    cube = synthetic_world(seed, lev=3, lat=6, lon=8)
    rng = np.random.default_rng(seed)
    fields = dict(cube.given)
    fields["ta"] = fields["ta"] + rng.normal(0, 3, fields["ta"].shape)
    fields["hus"] = fields["hus"] * rng.uniform(0.5, 2, fields["hus"].shape)
    fields["ps"] = fields["ps"] + rng.normal(0, 500, fields["ps"].shape)
    return build_cube(cube.planet, fields, cube.axes)


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return [World(noisy(seed), LAYOUT, f"w{seed}") for seed in (1, 2)]


def cells(world: World, level: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Inputs [cell, feature], changes [cell, output] and areas [cell] of one level, over all SAMPLES, written out."""
    xs, ys, areas = [], [], []
    fields = world.fields.double().numpy()[:, :, :, level]  # [variable, climate_time, geological_time, lat, lon]
    for sample in SAMPLES:
        for epoch in sample.epochs:
            months = fields[:, :, epoch]
            x = months[:, sample.target - 2 : sample.target]
            y = months[:, sample.target : sample.target + 2] - months[:, sample.target - 1, None]
            xs.append(x.reshape(6, -1).T)
            ys.append((y / NOMINAL[:, None, None, None]).reshape(6, -1).T)
            areas.append(np.repeat(area_weights(world.cube.lat_deg), months.shape[-1]))
    return np.concatenate(xs), np.concatenate(ys), np.concatenate(areas)


def direct_ridge(worlds: list[World], level: int) -> tuple[NDArray[np.float64], ...]:
    """One weighted least-squares fit with a penalty on standardised slopes, by augmented rows; (mean, slopes, mean)."""
    parts = [cells(world, level) for world in worlds]
    x, y, area = (np.concatenate([part[i] for part in parts]) for i in range(3))
    weight = area[:, None] / area.sum()
    mean_x, mean_y = (weight * x).sum(axis=0), (weight * y).sum(axis=0)
    spread = np.sqrt((weight * (x - mean_x) ** 2).sum(axis=0))
    rows = np.sqrt(weight) * (x - mean_x) / spread
    rows = np.concatenate((rows, np.sqrt(PENALTY) * np.eye(x.shape[1])))
    targets = np.concatenate((np.sqrt(weight) * (y - mean_y), np.zeros((x.shape[1], y.shape[1]))))
    slopes = np.linalg.lstsq(rows, targets, rcond=None)[0] / spread[:, None]
    return mean_x, slopes, mean_y


def test_the_federated_ridge_is_one_fit_over_the_sites_cells(worlds: list[World]) -> None:
    """The sites add up small matrices; the fit must be that of a direct least squares over all their cells."""
    equations = [ridge_equations(world, SAMPLES) for world in worlds]
    coefficients = pooled_ridge({key: np.mean([e[key] for e in equations], axis=0) for key in (GRAM, CROSS)})
    assert coefficients is not None and coefficients.shape == (3, 7, 6)
    sample = Sample(7, (0, 1), (0, 1))
    found = ridge(worlds[0], sample, coefficients).double().numpy()
    changes = []
    for level in range(3):
        mean_x, slopes, mean_y = direct_ridge(worlds, level)
        x = worlds[0].fields.double().numpy()[:, 5:7, :, level]
        x = x.transpose(2, 3, 4, 0, 1).reshape(2, 6, 8, 6)  # [geological_time, lat, lon, variable · month]
        y = ((x - mean_x) @ slopes + mean_y).reshape(2, 6, 8, 3, 2)
        changes.append(y.transpose(3, 4, 0, 1, 2) * NOMINAL[:, None, None, None, None])
    expected = np.stack(changes, axis=3)  # [variable, climate_time, geological_time, lev, lat, lon]
    expected[2] = expected[2].mean(axis=2, keepdims=True)  # surface pressure has no levels
    expected += worlds[0].last(sample).double().numpy()
    for found_, expected_, spread in zip(found, expected, NOMINAL, strict=True):
        np.testing.assert_allclose(found_, expected_, atol=2e-4 * spread)


def test_sites_count_alike_however_many_samples_they_have(worlds: list[World]) -> None:
    once, twice = (ridge_equations(worlds[0], SAMPLES * times) for times in (1, 2))
    np.testing.assert_allclose(once[GRAM], twice[GRAM], rtol=1e-12)
    np.testing.assert_allclose(once[GRAM][:, -1, -1], 1.0, rtol=1e-6)


def test_a_feature_that_is_constant_does_not_break_the_ridge() -> None:
    """Standardising by a spread of 0 would."""
    gram = np.array([[[1.0, 0.5, 1.0], [0.5, 0.25, 0.5], [1.0, 0.5, 1.0]]])  # both features constant
    coefficients = ridge_coefficients(gram, np.array([[[2.0], [1.0], [2.0]]]))
    np.testing.assert_allclose(coefficients[0, :, 0], [0, 0, 2], atol=1e-9)


def test_without_statistics_there_is_no_ridge() -> None:
    assert pooled_ridge({GRAM: np.ones((1, 2, 2))}) is None


def test_persistence_repeats_the_last_month(worlds: list[World]) -> None:
    sample = Sample(5, (1,), (0,))
    found = persistence(worlds[0], sample)
    assert found.shape == worlds[0].targets(sample).shape
    for month in range(2):
        assert torch.equal(found[:, month], worlds[0].fields[:, 4, 1:2])


def test_climatology_is_the_mean_of_the_other_epochs() -> None:
    """Never of the epoch that is predicted: that would be the answer itself."""
    world = World(synthetic_world(3, lev=2, lat=4, lon=4, geological_time=3), LAYOUT, "w")
    sample = Sample(5, (0, 2), (1,))
    found = climatology(world, sample)
    months = world.fields[:, 5:7]
    torch.testing.assert_close(found[:, :, 0], (months[:, :, 1] + months[:, :, 2]) / 2)
    torch.testing.assert_close(found[:, :, 1], (months[:, :, 0] + months[:, :, 1]) / 2)
