"""A coarse world is a world: the same planet, the same means, the same physics."""

import numpy as np
import pytest

from astrofed.client.data.cube import read_cube
from astrofed.client.tasks.datacube_curriculum import OddGrid, coarsened, horizon
from astrofed.client.tasks.datacube_physics import compliance_metrics
from astrofed.client.tasks.datacube_samples import Sample, World
from astrofed.client.tasks.datacube_scales import area_weights
from astrofed.shared.models.datacube_layout import DatacubeLayout
from astrofed.simulations.bundled import resolve_bundled
from astrofed.simulations.synthetic import synthetic_world


def test_global_means_stay_and_the_grid_is_halved() -> None:
    cube = synthetic_world(4, lev=3, lat=16, lon=12)
    coarse = coarsened(cube, "a")
    assert coarse.fields["ta"].shape == (2, 12, 3, 8, 6) and coarse.planet == cube.planet
    fine_area = np.sin(np.deg2rad(90 - np.arange(17) * 180 / 16))
    for name in ("ta", "ps", "rst"):
        weights, twice = area_weights(cube.lat_deg), -np.diff(fine_area)
        np.testing.assert_allclose(weights / weights.sum(), twice / twice.sum(), rtol=0.02)
        fine = (cube.fields[name] * weights[:, None]).mean(axis=(-2, -1))
        shares = weights.reshape(-1, 2).sum(axis=1)
        found = (coarse.fields[name] * (shares / shares.mean())[:, None]).mean(axis=(-2, -1))
        np.testing.assert_allclose(found, fine, rtol=1e-5)


def test_what_holds_on_any_grid_holds_on_a_coarse_one() -> None:
    layout = DatacubeLayout()
    world = World(coarsened(read_cube(resolve_bundled("worlds/earthlike")), "earthlike"), layout, "earthlike")
    sample = Sample(6, (0, 1), (0, 1))
    metrics = compliance_metrics(world, [sample], [world.targets(sample)], with_data=False)
    assert metrics["physics/hydrostatic/compliance"] == 1.0 and metrics["physics/dry-mass/compliance"] == 1.0
    assert metrics["physics/energy/compliance"] == 1.0
    assert metrics["physics/mass-continuity/compliance"] < 0.8, "why the loss asks for none of it on coarse grids"


@pytest.mark.parametrize(("lat", "lon"), [(15, 16), (16, 15), (4, 16)])
def test_a_grid_that_can_t_be_halved_is_refused(lat: int, lon: int) -> None:
    with pytest.raises(OddGrid, match=rf"a: task.coarse_rounds needs even .* the cube has {lat} and {lon}: leave"):
        coarsened(synthetic_world(1, lev=2, lat=lat, lon=lon), "a")


def test_the_horizon_grows_from_one_month_to_all() -> None:
    assert [horizon(number, 4, 3) for number in range(1, 8)] == [1, 1, 2, 2, 3, 3, 3]
    assert [horizon(number, 0, 3) for number in (1, 9)] == [3, 3] and horizon(5, 2, 1) == 1
