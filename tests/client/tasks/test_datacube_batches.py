"""Batches: every sample once an epoch, and augmentations that are what turning or mirroring the world itself gives."""

from collections import Counter

import numpy as np
import pytest
import torch

from astrofed.client.data.cube import Cube, build_cube
from astrofed.client.tasks.datacube_batches import Batch, batches, mirrored, rolled, stack
from astrofed.client.tasks.datacube_samples import Sample, World, training_samples
from astrofed.client.tasks.datacube_scales import CHANGE, FIELD, MEAN, Scales, site_scales
from astrofed.shared.models.datacube_layout import DatacubeLayout
from astrofed.simulations.synthetic import synthetic_world

LAYOUT = DatacubeLayout(variables=("ta", "hus", "va", "ps", "rst"), months_in=3)
SAMPLES = [Sample(5, (0, 1), (0, 1)), Sample(8, (0, 1), (0, 1))]


@pytest.fixture(scope="module")
def cube() -> Cube:
    """A world with land and mountains, which must go along."""
    plain = synthetic_world(4, lev=3, lat=6, lon=8)
    land = np.zeros_like(plain.fields["lsm"])
    land[..., 1, 2:5] = 1
    return build_cube(plain.planet, {**plain.given, "lsm": land, "phis": 900 * land}, plain.axes)


def scales_of(cube: Cube) -> Scales:
    world = World(cube, LAYOUT, "w")
    frames = [(month, epoch) for month in range(12) for epoch in range(2)]
    measured = site_scales(world.fields.numpy(), frames, cube.lat_deg, LAYOUT.variables, "w")
    return Scales.pooled({key: measured[key] for key in (MEAN, FIELD, CHANGE)})


def assert_same(found: Batch, expected: Batch) -> None:
    for name in ("state", "forcing", "last", "target"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5, msg=name)


def test_turning_a_batch_is_turning_its_world(cube: Cube) -> None:
    turned = build_cube(cube.planet, {k: np.roll(v, 3, -1) for k, v in cube.given.items()}, cube.axes)
    scales = scales_of(cube)
    expected = stack(World(turned, LAYOUT, "w"), SAMPLES, scales)
    found = rolled(stack(World(cube, LAYOUT, "w"), SAMPLES, scales), 3)
    assert_same(found, expected)


def test_mirroring_a_batch_is_mirroring_its_world(cube: Cube) -> None:
    """Land, weather and seasons change hemispheres, v its sign; the grid's latitudes stay where they are."""
    fields = {k: np.flip(v, -2) for k, v in cube.given.items()}
    fields["va"] = -fields["va"]
    scales = scales_of(cube)
    expected = stack(World(build_cube(cube.planet, fields, cube.axes), LAYOUT, "w"), SAMPLES, scales)
    found = mirrored(stack(World(cube, LAYOUT, "w"), SAMPLES, scales), LAYOUT.mirror_signs())
    assert_same(found, expected)


def test_mirrored_twice_is_as_before(cube: Cube) -> None:
    batch, signs = stack(World(cube, LAYOUT, "w"), SAMPLES, scales_of(cube)), LAYOUT.mirror_signs()
    assert_same(mirrored(mirrored(batch, signs), signs), batch)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_an_epoch_holds_every_sample_once(cube: Cube, size: int) -> None:
    world, samples = World(cube, LAYOUT, "w"), training_samples(12, 2, LAYOUT, 6)
    generator = torch.Generator().manual_seed(0)
    found = list(batches(world, samples, scales_of(cube), generator, size=size, mirror=True, roll=True))
    assert Counter(sample for batch in found for sample in batch.samples) == Counter(samples)
    for batch in found:
        assert len(batch.samples) == batch.state.shape[0] <= size
        assert {len(sample.epochs) for sample in batch.samples} == {batch.state.shape[3]}


def test_order_and_variations_come_from_the_generator_alone(cube: Cube) -> None:
    world, samples, scales = World(cube, LAYOUT, "w"), training_samples(12, 2, LAYOUT, 6), scales_of(cube)

    def draw(seed: int) -> list[Batch]:
        generator = torch.Generator().manual_seed(seed)
        return [*batches(world, samples, scales, generator, size=2, mirror=True, roll=True)]

    for first, second in zip(draw(1), draw(1), strict=True):
        assert first.samples == second.samples
        assert_same(first, second)
    assert [batch.samples for batch in draw(1)] != [batch.samples for batch in draw(2)]


def test_batches_are_mirrored_now_and_then_and_turned_by_any_longitude(cube: Cube) -> None:
    world, scales = World(cube, LAYOUT, "w"), scales_of(cube)
    generator = torch.Generator().manual_seed(0)
    plain = stack(world, SAMPLES[:1], scales).target
    image = mirrored(stack(world, SAMPLES[:1], scales), LAYOUT.mirror_signs()).target

    def draw(*, mirror: bool, roll: bool) -> torch.Tensor:
        (batch,) = batches(world, SAMPLES[:1], scales, generator, size=1, mirror=mirror, roll=roll)
        return batch.target

    mirrors = [torch.equal(draw(mirror=True, roll=False), image) for _ in range(20)]
    assert 4 <= sum(mirrors) <= 16
    turned = [draw(mirror=False, roll=True) for _ in range(60)]
    found = {next(k for k in range(8) if torch.equal(target, plain.roll(k, -1))) for target in turned}
    assert found == set(range(8))


def test_without_variations_worlds_stay_as_they_are(cube: Cube) -> None:
    world, scales = World(cube, LAYOUT, "w"), scales_of(cube)
    generator = torch.Generator().manual_seed(0)
    for batch in batches(world, SAMPLES, scales, generator, size=1, mirror=False, roll=False):
        assert_same(batch, stack(world, batch.samples, scales))
