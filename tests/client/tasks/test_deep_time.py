"""The deep-time task: histories read, roll-outs, constraints that the data obey and baselines break, training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import astrofed
from astrofed.client.data.table import build_table, write_table
from astrofed.client.tasks.deep_time_histories import NoHistory, read_history
from astrofed.client.tasks.deep_time_scores import BASELINES, compliance, model_step, rolled_out, scores
from astrofed.shared.models.base import build_model
from astrofed.shared.models.history_layout import NAMES, QUANTITIES, scaled, unscaled
from astrofed.shared.physics import GEOLOGICAL_TOLERANCES
from astrofed.shared.plan import PlanError, load_plan
from astrofed.simulations.bundled import bundled_names, resolve_bundled
from astrofed.simulations.export import export_run
from astrofed.testing import check_plugin

HISTORIES = [name for name in bundled_names() if "histories/" in name]


@pytest.fixture
def plan() -> dict[str, Any]:
    """An interior and a planet; another planet is only looked at."""
    roles = {"earth_interior": "train", "trappist1_b": "train", "trappist1_e": "evaluate"}
    return {
        "name": "deep",
        "seed": 1,
        "rounds": 6,
        "evaluate_every": 6,
        "task": {"name": "deep-time", "stride": 10, "horizon": 6},
        "model": {"name": "history-net", "width": 16},
        "training": {"epochs": 4, "batch_size": 8, "optimizer": "adam", "learning_rate": 2e-3, "gradient_clip": 1.0},
        "engine": {"threads": 1},
        "participants": [{"name": n, "data": f"bundled:histories/{n}", "role": role} for n, role in roles.items()],
    }


def test_states_come_back_in_their_own_units() -> None:
    values = torch.tensor([[q.middle * 1.7 for q in QUANTITIES]], dtype=torch.float64)
    torch.testing.assert_close(unscaled(scaled(values)), values)


@pytest.mark.parametrize("name", HISTORIES)
def test_the_data_obey_every_constraint_that_can_be_evaluated(name: str) -> None:
    history = read_history(resolve_bundled(name), 5, 0.4)
    found = compliance(history, history.states[history.split :])
    assert {value for key, value in found.items() if key.endswith("compliance")} == {1.0}
    interior = "earth" in name
    assert ("physics/secular-cooling/compliance" in found) == interior
    assert ("physics/water-escape/compliance" in found) == (not interior)


def test_constraints_see_what_breaks_them() -> None:
    history = read_history(resolve_bundled("bundled:histories/trappist1_b"), 5, 0.4)
    truth = history.states[history.split :]
    for name, constraint in (
        ("surface_water", "water-escape"),
        ("oxygen", "oxygen-build-up"),
        ("luminosity", "contraction"),
        ("xuv_luminosity", "xuv-saturation"),
    ):
        wrong, column = truth.clone(), NAMES.index(name)
        wrong[1::2, column] += 0.2
        wrong[::2, column] -= 0.1
        assert compliance(history, wrong)[f"physics/{constraint}/compliance"] < 0.6
    earth = read_history(resolve_bundled("bundled:histories/earth_interior"), 5, 0.4)
    flat = earth.states[earth.split :].clone()
    flat[:, NAMES.index("secular_heat_flow")] += 0.5
    found = compliance(earth, flat)
    assert found["physics/secular-cooling/compliance"] == 0.0
    assert found["physics/radiogenic-decay/compliance"] == 1.0


def test_the_untrained_model_extrapolates_within_the_signs(plan: dict[str, Any]) -> None:
    history = read_history(resolve_bundled("bundled:histories/trappist1_b"), 10, 0.4)
    for monotone in (True, False):
        model = build_model(load_plan(plan | {"model": plan["model"] | {"monotone": monotone}})).eval()
        with torch.no_grad():
            ours = rolled_out(history, model_step(model, history))[0]
        linear = rolled_out(history, BASELINES["linear"])[0]
        torch.testing.assert_close(ours, linear * history.given, atol=1e-5, rtol=0)
    torch.manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    free = scores(history, model_step(model, history))["physics/water-escape/compliance"]
    model.monotone = True  # type: ignore[assignment]
    held = scores(history, model_step(model, history))
    assert held["physics/water-escape/compliance"] == 1.0 > free


def test_persistence_and_extrapolation_are_what_they_say() -> None:
    history = read_history(resolve_bundled("bundled:histories/earth_interior"), 5, 0.4)
    last, before = history.states[history.split - 1].float(), history.states[history.split - 2].float()
    count = len(history.times) - history.split
    assert torch.equal(rolled_out(history, BASELINES["persistence"]), last.expand(count, -1))
    far = rolled_out(history, BASELINES["linear"])[-1]
    torch.testing.assert_close(far, last + count * (last - before), atol=2e-3, rtol=1e-3)


def test_a_federation_of_an_interior_and_a_planet_learns_both(plan: dict[str, Any], tmp_path: Path) -> None:
    result = astrofed.simulate(plan, out=tmp_path / "run")
    first, last = result.rounds[0], result.rounds[-1]
    assert first.loss is not None and last.loss is not None and last.loss < first.loss
    assert last.loss < first.metrics["baseline/persistence/loss"]
    assert "rmse/core_temperature" in last.sites["earth_interior"]
    assert "rmse/core_temperature" not in last.sites["trappist1_b"]
    assert last.sites["trappist1_b"]["physics/water-escape/compliance"] == 1.0
    assert "unseen/loss" in result.metrics
    physics = result.physics
    assert set(physics) == set(GEOLOGICAL_TOLERANCES)
    assert physics["water-escape"] == {"compliance": 1.0, "tolerance": 1e-6}
    assert first.metrics["baseline/data/physics/secular-cooling/compliance"] == 1.0
    assert "water escape" in result.report.read_text()
    alone = plan | {"participants": plan["participants"][:1], "mode": "single"}
    assert "rmse/mantle_temperature" in astrofed.simulate(alone, out=tmp_path / "alone").metrics


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"time": np.arange(50.0)}, "none of the known"),
        ({"oxygen": np.arange(50.0)}, "no column 'time'"),
        ({"time": np.arange(50.0) ** 2, "oxygen": np.arange(50.0)}, "equal steps"),
        ({"time": np.arange(50.0), "oxygen": np.full(50, np.nan)}, "absent"),
        ({"time": np.arange(50.0), "oxygen": np.full(50, -1.0)}, "can't be"),
        ({"time": np.arange(50.0), "luminosity": np.zeros(50)}, "can't be"),
    ],
)
def test_what_is_no_history_is_refused(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    units = {"time": "Gyr", "oxygen": "bar", "luminosity": "L_sun"}
    table = build_table(
        {"world": np.full(50, "x", dtype=np.str_)} | columns, {k: units[k] for k in columns}, "world", "world"
    )
    write_table(table, tmp_path / "x.parquet")
    with pytest.raises(NoHistory, match=message):
        read_history(tmp_path / "x.parquet", 1, 0.4)


def test_its_model_is_for_its_task_alone(small: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="deep-time"):
        build_model(load_plan(small | {"model": {"name": "history-net"}}))


def test_task_and_model_keep_their_contracts(plan: dict[str, Any]) -> None:
    assert any("safetensors" in line for line in check_plugin("models", "history-net", plan=plan))
    assert any("same seed" in line for line in check_plugin("tasks", "deep-time", plan=plan))


def test_the_network_is_exported_with_the_same_numbers(plan: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    run = astrofed.simulate(plan | {"rounds": 1}, out=tmp_path / "run").run
    export_run(run, tmp_path / "model.onnx")  # which compares with torch on four sets of sizes
    assert (tmp_path / "model.onnx").is_file()
