"""The templates in docs/templates keep the contracts and do what they say."""

from pathlib import Path
from typing import Any

import pytest

import astrofed
from astrofed.testing import check_plugin

TEMPLATES = Path(__file__).parents[2] / "docs" / "templates"


@pytest.fixture
def masses(small: dict[str, Any]) -> dict[str, Any]:
    """A plan of the template's task."""
    return small | {"task": "MassFromRadius", "model": {"name": "mlp", "inputs": 1, "outputs": 1}}


@pytest.mark.parametrize(("kind", "name"), [("rules", "Midhinge"), ("attacks", "Lazy")])
def test_templates_that_need_no_plan(kind: Any, name: str) -> None:
    assert check_plugin(kind, name, plugins=[TEMPLATES / f"my_{kind.removesuffix('s')}.py"])


def test_the_strategy_template_keeps_its_contract(small: dict[str, Any]) -> None:
    plan = small | {"strategy": {"name": "HalfStep", "fraction": 0.7}}
    held = check_plugin("strategies", "HalfStep", plan=plan, plugins=[TEMPLATES / "my_strategy.py"])
    assert any("resumed" in line for line in held)


def test_the_model_template_keeps_its_contract(small: dict[str, Any]) -> None:
    assert check_plugin("models", "Residual", plan=small | {"model": "Residual"}, plugins=[TEMPLATES / "my_model.py"])


def test_the_task_template_keeps_its_contract_and_learns(masses: dict[str, Any], tmp_path: Path) -> None:
    template = TEMPLATES / "my_task.py"
    assert check_plugin("tasks", "MassFromRadius", plan=masses, plugins=[template])
    masses["training"] = {"epochs": 5, "batch_size": 32, "learning_rate": 0.03, "optimizer": "adam"}
    result = astrofed.simulate(masses | {"rounds": 6}, out=tmp_path / "run")
    assert result.metrics["loss"] < 0.5 * result.baselines["mean"]
