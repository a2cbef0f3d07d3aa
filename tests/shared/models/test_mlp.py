"""The perceptron: built from the plan alone, sized by its task, and blind to other rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from astrofed.shared.models.base import build_model
from astrofed.shared.models.mlp import MLP, RowShapeError
from astrofed.shared.models.planet_layout import FEATURES, TARGETS
from astrofed.shared.plan import Plan, PlanError, load_plan
from astrofed.shared.seeds import torch_seeded

PLAN: dict[str, Any] = {
    "name": "trial",
    "seed": 4,
    "task": "planets",
    "model": {"name": "mlp", "hidden": [8, 6]},
    "participants": [{"name": "a", "data": "/data/a"}],
}


def plan(**changes: Any) -> Plan:
    return load_plan({**PLAN, **changes})


def rows(count: int, features: int = FEATURES) -> torch.Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(1))


def test_the_planet_task_says_the_sizes() -> None:
    model = build_model(plan())
    assert model(rows(5)).shape == (5, len(TARGETS))
    assert [p.shape[0] for name, p in model.named_parameters() if name.startswith("body") and p.ndim == 2] == [8, 6]


def test_other_tasks_take_the_sizes_from_the_plan_and_must_have_both() -> None:
    model = {"name": "mlp", "inputs": 3, "outputs": 4}
    assert build_model(plan(task="datacube", model=model))(rows(2, 3)).shape == (2, 4)
    with pytest.raises(PlanError, match=r"model\.inputs and model\.outputs.*'datacube' doesn't say"):
        build_model(plan(task="datacube", model={"name": "mlp", "inputs": 3}))


@pytest.mark.parametrize("hidden", [[], [0], [5000]])
def test_sizes_out_of_range_are_refused(hidden: list[int]) -> None:
    with pytest.raises(PlanError, match=r"model\.hidden"):
        build_model(plan(model={"name": "mlp", "hidden": hidden}))


def test_it_starts_near_zero_and_the_same_everywhere() -> None:
    one, other = build_model(plan()), build_model(plan())
    assert float(one(rows(100)).detach().abs().max()) < 0.5
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert not torch.equal(build_model(plan(seed=5)).state_dict()["body.0.weight"], one.state_dict()["body.0.weight"])


def test_no_row_sees_another() -> None:
    model, batch = build_model(plan()).train(), rows(6)
    torch.testing.assert_close(model(batch)[2:3], model(batch[2:3]))
    changed = batch.clone()
    changed[0] = 100.0
    torch.testing.assert_close(model(changed)[1:], model(batch)[1:])


def test_it_computes_what_it_computed_before() -> None:
    with torch_seeded(0):
        model = MLP(3, 2, hidden=(4,))
    out = model(torch.tensor([[1.0, -2.0, 0.5]]))
    torch.testing.assert_close(out, torch.tensor([[-0.003696, -0.015975]]), rtol=1e-4, atol=1e-6)


def test_a_checkpoint_brings_it_back(tmp_path: Path) -> None:
    model, fresh = build_model(plan()), build_model(plan(seed=9))
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    fresh.load_state_dict(load_file(tmp_path / "m.safetensors"))
    assert torch.equal(fresh(rows(3)), model(rows(3)))


@pytest.mark.parametrize("shape", [(3,), (3, FEATURES + 1), (1, 3, FEATURES)])
def test_rows_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RowShapeError, match=rf"expected \[batch, feature\] with {FEATURES} features"):
        build_model(plan())(torch.zeros(shape))
