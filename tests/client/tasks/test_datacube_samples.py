"""Samples: which months a site learns from and is tested on, and how months become the network's input."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astrofed.client.data.cube import Cube, build_cube
from astrofed.client.tasks.datacube_samples import (
    Sample,
    VariableNotInCube,
    World,
    all_samples,
    held_out_samples,
    training_samples,
)
from astrofed.client.tasks.datacube_scales import Scales
from astrofed.shared.models.datacube_layout import FIXED_FORCING, DatacubeLayout
from astrofed.simulations.synthetic import EARTH_LIKE, synthetic_world

LAYOUT = DatacubeLayout(variables=("ta", "va", "ps"), months_in=3, months_out=2)


@pytest.fixture(scope="module")
def cube() -> Cube:
    return synthetic_world(2, lev=4, lat=6, lon=8)


def changed(cube: Cube, fields: Mapping[str, Any] | None = None, axes: Mapping[str, Any] | None = None) -> Cube:
    return build_cube(cube.planet, {**cube.given, **(fields or {})}, {**cube.axes, **(axes or {})})


def unit_scales(world: World) -> Scales:
    ones = torch.ones(len(world.layout.variables), 1, 1, world.fields.shape[3], 1, 1)
    return Scales(mean=0 * ones, field=ones, change=ones)


def frames(sample: Sample, layout: DatacubeLayout, *, inputs: bool = True) -> set[tuple[int, int]]:
    """The (month, epoch) pairs that a sample holds."""
    first = sample.target - (layout.months_in if inputs else 0)
    return {(month, epoch) for month in range(first, sample.target + layout.months_out) for epoch in sample.epochs}


@given(
    months=st.integers(1, 24),
    epochs=st.integers(1, 4),
    months_in=st.integers(1, 5),
    months_out=st.integers(1, 3),
    held_out=st.integers(1, 12),
)
def test_held_out_months_are_in_no_training_sample(
    months: int, epochs: int, months_in: int, months_out: int, held_out: int
) -> None:
    layout = DatacubeLayout(variables=("ta",), months_in=months_in, months_out=months_out)
    hidden = {(month, epochs - 1) for month in range(max(months - held_out, 0), months)}
    everything = {(month, epoch) for month in range(months) for epoch in range(epochs)}
    trained, tested = (f(months, epochs, layout, held_out) for f in (training_samples, held_out_samples))
    for sample in trained:
        assert frames(sample, layout) <= everything - hidden
        assert sample.scored == tuple(range(len(sample.epochs)))
    for sample in tested:
        assert frames(sample, layout) <= everything
        asked = {(month, epochs - 1) for month in range(sample.target, sample.target + months_out)}
        assert sample.scored == (epochs - 1,) and asked <= hidden
    assert len({sample.target for sample in trained}) == len(trained)


def test_the_year_of_the_shipped_worlds_gives_eight_samples_to_learn_and_six_to_test() -> None:
    layout = DatacubeLayout(months_in=4)
    trained, tested = training_samples(12, 2, layout, 6), held_out_samples(12, 2, layout, 6)
    assert [(s.target, s.epochs) for s in trained] == [(4, (0, 1)), (5, (0, 1)), *((t, (0,)) for t in range(6, 12))]
    assert [s.target for s in tested] == list(range(6, 12))
    assert all_samples(12, 2, layout) == [Sample(t, (0, 1), (0, 1)) for t in range(4, 12)]


def test_a_world_of_one_epoch_keeps_its_held_out_months_too() -> None:
    trained = training_samples(12, 1, DatacubeLayout(months_in=2), 6)
    assert [s.target for s in trained] == [2, 3, 4, 5]


def test_input_months_are_standardised_each_in_its_way(cube: Cube) -> None:
    """The last month by the fields' scales; the months before as steps from it, by the scale of changes."""
    world, sample = World(cube, LAYOUT, "w"), Sample(5, (0, 1), (0, 1))
    ones = torch.ones(3, 1, 1, 4, 1, 1)
    given_ = world.inputs(sample, Scales(mean=7 * ones, field=2 * ones, change=5 * ones))
    assert given_.shape == (3, 3, 2, 4, 6, 8)
    ta = torch.from_numpy(np.swapaxes(cube.fields["ta"], 0, 1).copy())
    torch.testing.assert_close(given_[0, 2], (ta[4] - 7) / 2)
    torch.testing.assert_close(given_[0, 0], (ta[2] - ta[4]) / 5)
    torch.testing.assert_close(world.targets(sample)[0], ta[5:7])
    torch.testing.assert_close(world.last(sample)[0, 0], ta[4])
    one = Sample(5, (1,), (0,))
    torch.testing.assert_close(world.targets(one)[0], ta[5:7, 1:])
    assert world.forcing(one).shape == (LAYOUT.forcings, 1, 4, 6, 8)


def test_a_field_without_levels_is_repeated_over_them(cube: Cube) -> None:
    last = World(cube, LAYOUT, "w").last(Sample(5, (0, 1), (0, 1)))[2, 0]
    for level in range(4):
        np.testing.assert_array_equal(last[:, level].numpy(), cube.fields["ps"][:, 4])


def test_forcing_tells_what_is_known_beforehand(cube: Cube) -> None:
    planet = dataclasses.replace(EARTH_LIKE, rotation_period_s=2 * 86164.1)
    slow = build_cube(planet, cube.given, cube.axes)
    forcing = World(slow, LAYOUT, "w").forcing(Sample(5, (0, 1), (0, 1)))
    channel = {name: forcing[index] for index, name in enumerate(FIXED_FORCING)}
    sine = np.sin(np.deg2rad(cube.lat_deg))
    np.testing.assert_allclose(channel["sigma"][1, :, 2, 3], cube.lev, rtol=1e-6)
    np.testing.assert_allclose(channel["sine of latitude"][0, 0, :, 0], sine, rtol=1e-6)
    np.testing.assert_allclose(channel["Coriolis parameter"][0, 0, :, 0], sine / 2, rtol=1e-4)
    np.testing.assert_allclose(channel["stellar flux"][:, 0, 0, 0], 5 * (cube.flux_w_m2 / 1340 - 1), rtol=1e-5)
    np.testing.assert_allclose(channel["gravity"][0, 0, 0, 0], 0, atol=1e-6)


def sinusoidal_sunlight(cube: Cube) -> tuple[Cube, np.ndarray]:
    """A cube whose hemispheres' absorbed sunlight differs by a pure annual sinusoid, of another phase each epoch."""
    phase = np.array([0.3, 2.0])[:, None] + 2 * np.pi * np.arange(12) / 12
    asymmetry = np.sin(phase)  # [geological_time, climate_time]
    north = np.sign(cube.lat_deg)[:, None]
    rst = 240 + (cube.flux_w_m2[:, None] / 16 * asymmetry)[..., None, None] * north + np.zeros(8)
    return changed(cube, {"rst": rst}), asymmetry


def test_the_season_is_carried_forward_without_a_calendar(cube: Cube) -> None:
    seasonal, asymmetry = sinusoidal_sunlight(cube)
    forcing = World(seasonal, LAYOUT, "w").forcing(Sample(5, (0, 1), (0, 1)))[len(FIXED_FORCING) :]
    sine = np.sin(np.deg2rad(cube.lat_deg))
    for ahead in range(2):
        now, coming = asymmetry[:, 4, None], asymmetry[:, 5 + ahead, None]
        np.testing.assert_allclose(forcing[ahead, :, 2, :, 1], coming * sine, atol=1e-5)
        np.testing.assert_allclose(forcing[2 + ahead, :, 2, :, 1], 3 * (coming - now) * sine, atol=1e-5)


@pytest.mark.parametrize("sample", [Sample(5, (0, 1), (0, 1)), Sample(3, (1,), (0,))])
def test_nothing_after_the_last_input_month_is_looked_at(cube: Cube, sample: Sample) -> None:
    """Were the target months' own sunlight in the forcing, they would give their weather away."""
    future = {}
    for name, values in cube.given.items():
        if name not in ("lsm", "phis"):
            future[name] = values.copy()
            future[name][:, sample.target :] = 1.5 * values[:, sample.target :] + 1e-3
    ours, theirs = World(cube, LAYOUT, "w"), World(changed(cube, future), LAYOUT, "w")
    assert torch.equal(ours.forcing(sample), theirs.forcing(sample))
    assert torch.equal(*(world.inputs(sample, unit_scales(world)) for world in (ours, theirs)))
    assert not torch.equal(ours.targets(sample), theirs.targets(sample))


def test_without_a_season_no_sunlight_is_needed(cube: Cube) -> None:
    dark = build_cube(cube.planet, {k: v for k, v in cube.given.items() if k != "rst"}, cube.axes)
    with pytest.raises(VariableNotInCube, match=r"^site a: the cube has no variable 'rst' .*season = 'none'"):
        World(dark, LAYOUT, "site a")
    world = World(dark, LAYOUT.model_copy(update={"season": "none"}), "site a")
    assert not world.forcing(Sample(5, (0, 1), (0, 1)))[len(FIXED_FORCING) :].any()


@pytest.mark.parametrize("name", ["wap", "clt"])
def test_an_absent_variable_is_named_with_those_that_are_there(cube: Cube, name: str) -> None:
    with pytest.raises(VariableNotInCube, match=f"no variable '{name}' .it has .*ta.*leave it out of task.variables"):
        World(cube, DatacubeLayout(variables=("ta", name)), "site a")


def test_only_a_grid_that_is_its_own_mirror_image_can_be_mirrored(cube: Cube) -> None:
    assert World(cube, LAYOUT, "w").mirrors
    shifted = changed(cube, axes={"lat": cube.lat_deg - 3.0})
    assert not World(shifted, LAYOUT, "w").mirrors
