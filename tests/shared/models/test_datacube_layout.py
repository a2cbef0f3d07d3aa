"""The datacube layout: what a plan may ask for, and what the network's axes hold."""

from typing import Any

import pytest
import torch

from astrofed.client.data.contract import FIELDS
from astrofed.shared.models.base import build_model
from astrofed.shared.models.datacube_layout import COORDINATES, FIXED_FORCING, VARIABLES, DatacubeLayout
from astrofed.shared.plan import Plan, PlanError, load_plan


def plan(task: dict[str, Any], model: str = "datacube-net") -> Plan:
    return load_plan({"name": "t", "task": task, "model": model, "participants": [{"name": "a", "data": "a"}]})


def test_every_variable_is_one_of_the_data_contract_s() -> None:
    """Levels and the sign that mirroring changes must be those of the data."""
    for name, variable in VARIABLES.items():
        if name in FIELDS:
            assert variable.levels == ("lev" in FIELDS[name].dims), name
    assert set(VARIABLES) - set(FIELDS) <= {"clw"}
    assert [name for name, variable in VARIABLES.items() if variable.odd] == ["va"]


def test_the_grid_s_own_coordinates_stay_when_a_world_is_mirrored() -> None:
    assert [FIXED_FORCING[index] for index in COORDINATES] == ["sine of latitude", "Coriolis parameter"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"variables": ["ta", "hsu"]}, r"task\.variables: 'hsu' is not known; did you mean 'hus'\?"),
        ({"variables": ["temperature!"]}, r"task\.variables: 'temperature!' is not known; known: ta, hus"),
        ({"variables": ["ta", "ua", "ta"]}, r"task\.variables: 'ta' stands twice"),
        ({"variables": []}, r"task\.variables: .*at least 1 item"),
        ({"months_in": 0}, r"task\.months_in: .*greater than or equal to 1"),
        ({"month_in": 2}, r"task\.month_in: unknown key for 'datacube'; did you mean 'months_in'\?"),
        ({"season": "summer"}, r"task\.season: .*'absorbed sunlight' or 'none'"),
    ],
)
def test_a_wrong_layout_is_named_before_a_network_is_built(options: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        build_model(plan({"name": "datacube", **options}))


def test_a_datacube_network_is_refused_for_another_kind_of_task() -> None:
    with pytest.raises(PlanError, match="'datacube-net' is for tasks on datacubes; task 'planets' is none"):
        build_model(plan({"name": "planets"}))


def test_the_plan_s_layout_is_the_network_s() -> None:
    layout = DatacubeLayout.of_plan(
        plan({"name": "datacube", "variables": ["ua", "ps"], "months_out": 3, "roll": False})
    )
    assert (layout.variables, layout.months_in, layout.months_out) == (("ua", "ps"), 2, 3)
    assert layout.forcings == len(FIXED_FORCING) + 6


def test_variables_without_levels_are_averaged_over_them() -> None:
    layout = DatacubeLayout(variables=("ta", "ps", "va"))
    fields = torch.arange(3 * 4.0).reshape(1, 3, 1, 1, 4, 1, 1)
    means = layout.level_means(fields).squeeze()
    assert means.tolist() == [[0, 1, 2, 3], [5.5] * 4, [8, 9, 10, 11]]
    assert torch.equal(layout.level_means(fields[0]), layout.level_means(fields)[0]), "with and without a batch axis"
    assert layout.mirror_signs().tolist() == [1, 1, -1]
