"""The contract tests: what ships passes them, and each kind of broken plug-in is found."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from torch import nn

from astrofed.client.tasks.planets import PlanetSurrogate
from astrofed.server.aggregation.base import Combination, Coordinatewise
from astrofed.shared import registry
from astrofed.shared.models.mlp import MLP
from astrofed.simulations.attack import Attack, Forgery, Scene
from astrofed.testing import ContractBroken, NeedsPlan, check_plugin

SHIPPED_RULES = [plugin.name for plugin in registry.plugins("rules")]
SHIPPED_ATTACKS = [plugin.name for plugin in registry.plugins("attacks")]
OPTIONS: dict[str, dict[str, Any]] = {
    "fltrust": {"reference": "tess"},
    "label-flip": {"classes": 2},
    "clip": {"clip_norm": 1.0},
}


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a decorator that registers a class for one test."""
    monkeypatch.setattr(registry, "_added", {kind: {} for kind in registry.KINDS})
    return registry.register


@pytest.mark.parametrize("name", SHIPPED_RULES)
def test_shipped_rules_keep_their_contract(name: str) -> None:
    assert check_plugin("rules", name, options=OPTIONS.get(name))


@pytest.mark.parametrize("name", SHIPPED_ATTACKS)
def test_shipped_attacks_keep_their_contract(name: str) -> None:
    assert check_plugin("attacks", name, options=OPTIONS.get(name))


def test_the_planets_task_and_model_keep_their_contracts(small: dict[str, Any]) -> None:
    assert any("safetensors" in line for line in check_plugin("models", "mlp", plan=small))
    assert any("same seed" in line for line in check_plugin("tasks", "planets", plan=small))


@pytest.mark.parametrize("strategy", [{"name": "FedAdam"}, {"name": "robust", "rule": "centred-clipping", "f": 1}])
def test_strategies_that_keep_something_between_rounds_keep_their_contract(
    small: dict[str, Any], strategy: dict[str, Any]
) -> None:
    held = check_plugin("strategies", strategy["name"], plan=small | {"strategy": strategy})
    assert any("resumed" in line for line in held)


def test_a_rule_that_depends_on_the_order_is_found(registered: Any) -> None:
    @registered("rules", "first")
    class First(Combination):
        def minimum_replies(self, f: int) -> int | None:
            return 2 * f + 1

        def combine(self, gram: Any, shares: Any, f: int) -> Any:
            return np.eye(1, len(shares))[0]

    with pytest.raises(ContractBroken, match="the order of replies"):
        check_plugin("rules", "first")


def test_a_rule_that_claims_to_withstand_a_liar_and_does_not_is_found(registered: Any) -> None:
    @registered("rules", "brave mean")
    class BraveMean(Coordinatewise):
        def minimum_replies(self, f: int) -> int | None:
            return 2 * f + 1

        def reduce(self, rows: Any, f: int) -> Any:
            return rows.mean(axis=0)

    with pytest.raises(ContractBroken, match="one liar"):
        check_plugin("rules", "brave mean")


def test_a_rule_whose_condition_makes_no_sense_is_found(registered: Any) -> None:
    @registered("rules", "too few")
    class TooFew(Combination):
        def minimum_replies(self, f: int) -> int | None:
            return f

        def combine(self, gram: Any, shares: Any, f: int) -> Any:
            return shares

    with pytest.raises(ContractBroken, match="minimum_replies"):
        check_plugin("rules", "too few")


def test_an_attack_that_draws_from_elsewhere_is_found(registered: Any) -> None:
    calls = itertools.count()

    @registered("attacks", "unseeded")
    class Unseeded(Attack):
        def forge(self, scene: Scene) -> Forgery:
            return Forgery(scene.moved(lambda name: np.full_like(scene.own[name], next(calls))), scene.metrics)

    with pytest.raises(ContractBroken, match="same scene and seed"):
        check_plugin("attacks", "unseeded")


def test_an_attack_that_spoils_the_honest_work_is_found(registered: Any) -> None:
    @registered("attacks", "vandal")
    class Vandal(Attack):
        def forge(self, scene: Scene) -> Forgery:
            np.copyto(scene.honest[0]["weight"], 0.0)
            return Forgery(scene.own, scene.metrics)

    with pytest.raises(ContractBroken, match="only read"):
        check_plugin("attacks", "vandal")


def test_a_model_that_the_plan_alone_does_not_make_is_found(small: dict[str, Any], registered: Any) -> None:
    made = itertools.count(1)

    @registered("models", "whimsical")
    class Whimsical(MLP):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            nn.init.constant_(self.head.bias, float(next(made)))

    with pytest.raises(ContractBroken, match="the plan alone"):
        check_plugin("models", "whimsical", plan=small | {"model": "whimsical"})


def test_a_model_whose_weights_share_memory_is_found(small: dict[str, Any], registered: Any) -> None:
    @registered("models", "tied")
    class Tied(MLP):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.again = self.head

    with pytest.raises(ContractBroken, match="share memory"):
        check_plugin("models", "tied", plan=small | {"model": "tied"})


def test_a_strategy_that_forgets_when_it_is_resumed_is_found(small: dict[str, Any], registered: Any) -> None:
    class Momentum:
        """State that no checkpoint holds: not an array, a record or a number."""

        value = 1.0

    @registered("strategies", "forgetful")
    class Forgetful(FedAvg):
        def __init__(self) -> None:
            super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
            self.momentum = Momentum()

        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            arrays, metrics = super().aggregate_train(server_round, replies)
            self.momentum.value *= 0.5
            for name, array in arrays.items():
                arrays[name] = type(array)(array.numpy() * np.float32(self.momentum.value))
            return arrays, metrics

    with pytest.raises(ContractBroken, match="stopped and resumed"):
        check_plugin("strategies", "forgetful", plan=small | {"strategy": "forgetful"})


def test_a_task_that_trains_by_chance_is_found(small: dict[str, Any], registered: Any) -> None:
    @registered("tasks", "whimsical planets")
    class WhimsicalPlanets(PlanetSurrogate):
        calls = itertools.count()

        def train(self, model: nn.Module, statistics: Any, instruction: Any) -> Any:
            outcome = super().train(model, statistics, instruction)
            with torch.no_grad():
                next(model.parameters()).add_(float(next(self.calls)))
            return outcome

    model = {"name": "mlp", "inputs": 8, "outputs": 2}
    from astrofed.shared.models.planet_layout import FEATURES, TARGETS

    model |= {"inputs": FEATURES, "outputs": len(TARGETS)}
    with pytest.raises(ContractBroken, match="same seed"):
        check_plugin("tasks", "whimsical planets", plan=small | {"task": "whimsical planets", "model": model})


def test_what_needs_a_plan_says_so(small: dict[str, Any]) -> None:
    with pytest.raises(NeedsPlan, match="give one"):
        check_plugin("models", "mlp")
    with pytest.raises(NeedsPlan, match="not 'datacube-net'"):
        check_plugin("models", "datacube-net", plan=small)


def test_a_file_is_tested_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "middle_rule.py"
    file.write_text(
        "import numpy as np\n"
        "from astrofed.server.aggregation.base import Coordinatewise\n"
        "class Middle(Coordinatewise):\n"
        "    '''The median.'''\n"
        "    def minimum_replies(self, f):\n"
        "        return 2 * f + 1\n"
        "    def reduce(self, rows, f):\n"
        "        return np.median(rows, axis=0)\n"
    )
    assert check_plugin("rules", "Middle", plugins=[file])
