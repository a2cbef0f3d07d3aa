"""Roll-outs: nothing of the truth after the first months, the season carried on, drift seen."""

import pytest
import torch
from torch import Tensor

from astrofed.client.tasks.datacube_rollout import judge_rollout, roll_out
from astrofed.client.tasks.datacube_samples import Sample, VariableNotInCube, World
from astrofed.client.tasks.datacube_scales import Scales
from astrofed.shared.models.datacube_layout import DatacubeLayout
from astrofed.simulations.synthetic import synthetic_world

LAYOUT = DatacubeLayout(variables=("ta", "hus", "ps", "rst", "rlut"), months_in=4)


@pytest.fixture(scope="module")
def world() -> World:
    return World(synthetic_world(2, lev=3, lat=8, lon=8), LAYOUT, "synthetic")


def scales(world: World) -> Scales:
    ones = torch.ones(5, 1, 1, 3, 1, 1)
    return Scales(mean=0 * ones, field=ones, change=ones)


def persist(world: World, sample: Sample) -> Tensor:
    return world.last(sample)


def test_only_the_first_months_of_the_truth_are_seen(world: World) -> None:
    other = World(synthetic_world(2, lev=3, lat=8, lon=8), LAYOUT, "synthetic")
    other.fields = other.fields.clone()
    other.fields[:, 4:] = float("nan")
    seen: list[int] = []

    def mean_of_inputs(world: World, sample: Sample) -> Tensor:
        seen.append(world.fields.shape[1])
        assert torch.isfinite(world.forcing(sample)).all()
        return world.past(sample).mean(dim=1, keepdim=True)

    first, second = roll_out(world, mean_of_inputs, 6), roll_out(other, mean_of_inputs, 6)
    assert torch.equal(first, second) and first.shape[1] == 6 and seen == [4, 5, 6, 7, 8, 9] * 2
    torch.testing.assert_close(first[:, 0], world.fields[:, :4].mean(dim=1))
    assert world.fields.shape[1] == 12, "the world itself is left as it was"


def test_the_season_is_carried_on_from_predicted_sunlight(world: World) -> None:
    """With the truth predicted, the forcing of each month is that of a single prediction."""
    seen: list[Tensor] = []

    def truth(rolling: World, sample: Sample) -> Tensor:
        seen.append(rolling.forcing(sample))
        return world.targets(sample)

    roll_out(world, truth, 8)
    for month, forcing in enumerate(seen):
        torch.testing.assert_close(forcing, world.forcing(Sample(4 + month, (0, 1), (0, 1))), rtol=1e-3, atol=1e-3)


def test_the_truth_scores_without_error_and_persistence_as_persistence(world: World) -> None:
    known = world.fields[:, 4:]
    found = judge_rollout(world, scales(world), known)
    assert found.error == (0.0,) * 8 and found.finite and found.beats_persistence_for == 8
    assert max(found.mass) < 1e-5 and max(found.energy) < 0.2
    assert found.coldest == pytest.approx(float(known[0].min())) and found.warmest == pytest.approx(
        float(known[0].max())
    )
    same = judge_rollout(world, scales(world), roll_out(world, persist, 12))
    assert same.error == same.persistence and len(same.error) == 8 and len(same.mass) == 12
    assert same.beats_persistence_for == 0 and max(same.mass) == 0.0


def test_drift_and_collapse_are_seen(world: World) -> None:
    def leaking(world: World, sample: Sample) -> Tensor:
        following = world.last(sample).clone()
        following[2] *= 1.001
        return following

    found = judge_rollout(world, scales(world), roll_out(world, leaking, 12))
    assert found.mass[0] == pytest.approx(1e-3, rel=0.05) and found.mass[-1] == pytest.approx(12e-3, rel=0.05)
    broken = judge_rollout(world, scales(world), roll_out(world, persist, 3) * float("nan"))
    assert not broken.finite


def test_without_sunlight_among_the_variables_no_season_can_be_carried_on() -> None:
    layout = DatacubeLayout(variables=("ta", "ps"), months_in=4)
    blind = World(synthetic_world(2, lev=3, lat=8, lon=8), layout, "synthetic")
    with pytest.raises(VariableNotInCube, match=r"needs rst among task.variables"):
        roll_out(blind, persist, 2)
    still = World(blind.cube, layout.model_copy(update={"season": "none"}), "synthetic")
    assert roll_out(still, persist, 2).shape[1] == 2
