"""The transits task: a federation of two stars learns, real planets test it, and privacy of a star is refused."""

from pathlib import Path
from typing import Any

import pytest

import astrofed
from astrofed.client.app import open_task
from astrofed.client.site import Site
from astrofed.client.tasks.transits import Transits
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import PlanError, load_plan
from astrofed.simulations.bundled import resolve_bundled
from astrofed.simulations.compatibility import check_plan
from astrofed.simulations.export import export_run
from astrofed.testing import check_plugin

CONFIG = Path(__file__).parents[3] / "configs" / "transits.toml"


@pytest.fixture
def plan() -> dict[str, Any]:
    return {
        "name": "transits",
        "rounds": 4,
        "evaluate_every": 4,
        "task": {"name": "transits", "injections": 400, "tests": 100},
        "model": {"name": "transit-net", "width": 16, "depth": 1},
        "training": {"epochs": 2, "batch_size": 40, "optimizer": "adam", "learning_rate": 4e-3, "gradient_clip": 1.0},
        "engine": {"threads": 1},
        "participants": [
            {"name": "K2-3", "data": "bundled:transits/k2_3"},
            {"name": "WASP-75", "data": "bundled:transits/wasp_75"},
        ],
    }


def test_a_federation_of_two_stars_beats_the_box_on_injections(plan: dict[str, Any], tmp_path: Path) -> None:
    result = astrofed.simulate(plan, out=tmp_path / "run")
    metrics, first = result.metrics, result.rounds[0]
    assert first.loss == pytest.approx(first.metrics["baseline/box/loss"], rel=0.1)  # it begins where the box is
    assert metrics["loss"] < 0.75 * result.baselines["box"] < result.baselines["constant"]
    assert result.baselines["fit"] < 0.5 * result.baselines["box"]
    assert metrics["nll"] < first.metrics["nll"]  # and learns how far off it is
    assert 0.75 < metrics["conformal/coverage"] <= 1.0
    sites = result.rounds[-1].sites
    for name, planets in (("K2-3", ("K2-3 b", "K2-3 c", "K2-3 d")), ("WASP-75", ("WASP-75 b",))):
        for planet in planets:
            low, found, high = (sites[name][f"real/{planet}/{key}"] for key in ("low", "radius_ratio", "high"))
            assert low < found < high
            assert found == pytest.approx(sites[name][f"real/{planet}/published"], rel=0.25)
    assert "dex" in result.report.read_text()


def test_a_star_that_is_only_evaluated_is_tested_in_all_its_time(plan: dict[str, Any]) -> None:
    site = Site("a", resolve_bundled("transits/wasp_75"), role="evaluate")
    task = open_task(load_plan(plan), site)
    summary = task.summary()
    assert (summary.num_examples, summary.num_units, summary.num_eval_examples, summary.unit) == (0, 0, 100, "star")
    assert "known planets, never trained on: WASP-75 b" in summary.description


def test_what_tests_is_the_same_for_every_seed_and_what_trains_is_not(plan: dict[str, Any]) -> None:
    site = Site("a", resolve_bundled("transits/k2_3"))
    found = []
    for seed in (1, 2):
        task = open_task(load_plan(plan | {"seed": seed}), site)
        assert isinstance(task, Transits)
        found.append(task.data)
    assert found[0].tests.targets.tolist() == found[1].tests.targets.tolist()
    assert found[0].training is not None and found[1].training is not None
    assert found[0].training.targets.tolist() != found[1].training.targets.tolist()


def test_the_plan_that_ships_can_run_and_a_private_one_is_refused(plan: dict[str, Any]) -> None:
    assert any("not bounded" in line for line in check_plan(load_plan(CONFIG)))
    private = {"unit": "star", "epsilon": 8.0, "delta": 1e-5}
    with pytest.raises(PlanError, match="'transits' can't train with differential privacy"):
        check_plan(load_plan(plan | {"training": {"optimizer": "sgd"}, "privacy": private}))


def test_task_and_model_keep_their_contracts(plan: dict[str, Any]) -> None:
    small = plan | {"task": {"name": "transits", "injections": 40, "tests": 40}}
    assert any("safetensors" in line for line in check_plugin("models", "transit-net", plan=small))
    assert any("same seed" in line for line in check_plugin("tasks", "transits", plan=small))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "transit-net", "width": 30}}, "multiple of model.heads"),
        ({"task": "planets"}, "is for the task 'transits'"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(plan: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        build_model(load_plan(plan | changes))


def test_the_network_is_exported_with_the_same_numbers(plan: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    small = plan | {"rounds": 1, "task": {"name": "transits", "injections": 40, "tests": 40}}
    export_run(astrofed.simulate(small, out=tmp_path / "run").run, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").is_file()
