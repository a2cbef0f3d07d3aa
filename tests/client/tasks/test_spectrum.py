"""The spectrum task: modes teach one network, an instrument that nobody trains on tests it, and privacy is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import astrofed
from astrofed.client.app import open_task
from astrofed.client.site import Site
from astrofed.client.task import TrainInstruction
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import PlanError, load_plan
from astrofed.simulations.bundled import resolve_bundled
from astrofed.simulations.compatibility import check_plan
from astrofed.simulations.export import export_run
from astrofed.testing import check_plugin

CONFIG = Path(__file__).parents[3] / "configs" / "spectrum.toml"
UNSEEN = "nirspec_g395h_nrs1"


@pytest.fixture
def plan() -> dict[str, Any]:
    modes = ("nirspec_prism", "niriss_soss1", "nircam_f322w2", UNSEEN)
    return {
        "name": "spectrum",
        "rounds": 50,
        "evaluate_every": 50,
        "task": "spectrum",
        "model": {"name": "spectrum-net", "width": 32},
        "training": {"epochs": 2, "batch_size": 32, "optimizer": "adam", "learning_rate": 4e-3, "gradient_clip": 1.0},
        "engine": {"threads": 1},
        "participants": [
            {"name": mode, "data": f"bundled:spectra/wasp39b_{mode}"} | ({"role": "evaluate"} if mode == UNSEEN else {})
            for mode in modes
        ],
    }


def test_three_modes_predict_a_fourth_that_none_of_them_has(plan: dict[str, Any], tmp_path: Path) -> None:
    result = astrofed.simulate(plan, out=tmp_path / "run")
    first, last = result.rounds[0], result.rounds[-1]
    assert first.metrics["loss"] > 3 and last.metrics["loss"] < 0.6 * result.baselines["constant"]
    before, after = first.sites[UNSEEN], last.sites[UNSEEN]
    assert "baseline/interpolation/loss" not in before  # it has no bins to draw lines between
    assert after["chi_square"] < 0.2 * before["baseline/constant/chi_square"]
    assert after["loss"] == pytest.approx(after["chi_square"] ** 0.5)
    assert after["rmse/depth"] < 0.5 * before["baseline/constant/rmse/depth"]
    assert after["nll"] < before["baseline/constant/nll"]
    assert 0.65 < after["coverage/depth"] <= 1.0
    text = result.report.read_text()
    assert "ppm" in text and "Uncertainty" in text


def test_a_site_that_only_evaluates_is_tested_in_all_its_bins(plan: dict[str, Any]) -> None:
    data = resolve_bundled(f"spectra/wasp39b_{UNSEEN}")
    summary = open_task(load_plan(plan), Site("a", data, role="evaluate")).summary()
    assert (summary.num_examples, summary.num_units, summary.num_eval_examples, summary.unit) == (0, 0, 30, "star")
    assert summary.description == "star WASP-39, NIRSpec G395H NRS1: 30 bins at 2.74 to 3.69 um"
    trains = open_task(load_plan(plan), Site("a", data)).summary()
    assert (trains.num_examples, trains.num_units, trains.num_eval_examples) == (24, 1, 6)


def test_no_statistics_leave_and_the_plan_gives_the_scale(plan: dict[str, Any]) -> None:
    site, found = Site("a", resolve_bundled(f"spectra/wasp39b_{UNSEEN}"), role="evaluate"), []
    for depth in (21_000, 30_000):
        given = load_plan(plan | {"task": {"name": "spectrum", "depth": depth}})
        task = open_task(given, site)
        assert not task.statistics()
        found.append(task.evaluate(build_model(given), {}, with_baselines=False)["rmse/depth"])
    assert found[0] < 600 and found[1] == pytest.approx(9000, rel=0.1)  # before training the network says that depth


def test_the_plan_that_ships_can_run_and_a_private_one_is_refused(plan: dict[str, Any]) -> None:
    assert any("not bounded" in line for line in check_plan(load_plan(CONFIG)))
    private = {"unit": "star", "epsilon": 8.0, "delta": 1e-5}
    with pytest.raises(PlanError, match="'spectrum' can't train with differential privacy"):
        check_plan(load_plan(plan | {"training": {"optimizer": "sgd"}, "privacy": private}))


def test_task_and_model_keep_their_contracts(plan: dict[str, Any]) -> None:
    small = plan | {"rounds": 2, "evaluate_every": 2}
    assert any("safetensors" in line for line in check_plugin("models", "spectrum-net", plan=small))
    assert any("same seed" in line for line in check_plugin("tasks", "spectrum", plan=small))


def test_a_model_for_another_task_is_refused(plan: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="is for the task 'spectrum'; the plan's is 'planets'"):
        build_model(load_plan(plan | {"task": "planets"}))


def test_the_network_is_exported_with_the_same_numbers(plan: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    export_run(
        astrofed.simulate(plan | {"rounds": 1, "evaluate_every": 1}, out=tmp_path / "run").run, tmp_path / "model.onnx"
    )
    assert (tmp_path / "model.onnx").is_file()


def test_lying_targets_and_inputs_reach_training(plan: dict[str, Any]) -> None:
    data, given, losses = resolve_bundled(f"spectra/wasp39b_{UNSEEN}"), load_plan(plan), []
    for changes in ({}, {"corrupt_targets": lambda t: t + 4}, {"corrupt_inputs": lambda x: x.flip(0)}):
        task = open_task(given, Site("a", data, **changes))
        losses.append(task.train(build_model(given), {}, TrainInstruction(1, 7)).metrics["loss"])
    assert losses[1] > losses[0] + 1 and losses[2] != losses[0]
    assert np.isfinite(losses).all()
