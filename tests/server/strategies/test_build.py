"""From plans to strategies: options are checked, waiting without end is refused, guarantees are stated or refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, QFedAvg

from astrofed.server.strategies.build import build_strategy, check_guarantee
from astrofed.server.strategies.robust import RobustStrategy
from astrofed.shared import registry
from astrofed.shared.plan import Plan, PlanError, load_plan


def plan_of(strategy: Any, trainers: int = 6, evaluators: int = 1, overrides: tuple[str, ...] = ()) -> Plan:
    participants = [{"name": f"site {i}", "data": "bundled:x"} for i in range(trainers)]
    participants += [{"name": f"unseen {i}", "data": "bundled:x", "role": "evaluate"} for i in range(evaluators)]
    source = {"name": "p", "task": "t", "model": "m", "strategy": strategy, "participants": participants}
    return load_plan(source, overrides)


ROBUST = {"name": "robust", "rule": "multi-krum", "f": 1}


def test_ours_takes_its_own_keys() -> None:
    strategy = build_strategy(plan_of({**ROBUST, "pre": ["nnm"], "keep": 3}))
    assert isinstance(strategy, RobustStrategy)
    assert strategy.pipeline.name == "nnm + multi-krum" and strategy.pipeline.f == 1


def test_a_robust_plan_becomes_plain_averaging_by_its_strategys_name_alone() -> None:
    """As the demonstration does: rule and f stay in the plan, unused, and `plan check` says so."""
    plan = plan_of(ROBUST, overrides=("strategy.name=FedAvg",))
    strategy = build_strategy(plan)
    assert isinstance(strategy, FedAvg)
    assert (strategy.min_train_nodes, strategy.min_evaluate_nodes, strategy.min_available_nodes) == (1, 1, 1)
    lines = check_guarantee(plan)
    assert lines[0].startswith("FedAvg: no guarantee") and lines[1] == "strategy.rule, strategy.f: not used by FedAvg"


@pytest.mark.parametrize(
    "name",
    [
        "FedProx",
        "FedAvgM",
        "FedAdagrad",
        "FedAdam",
        "FedYogi",
        "FedMedian",
        "FedTrimmedAvg",
        "flwr.Krum",
        "flwr.Bulyan",
    ],
)
def test_every_flower_strategy_is_built_with_no_options(name: str) -> None:
    assert check_guarantee(plan_of(name, trainers=1))[0].startswith(f"{name}: no guarantee")


def test_options_with_hyphens_or_underscores() -> None:
    strategy = build_strategy(plan_of({"name": "FedAvgM", "server-momentum": 0.9, "server_learning_rate": 1}))
    assert isinstance(strategy, FedAvgM) and strategy.server_momentum == 0.9 and strategy.server_learning_rate == 1
    adam = build_strategy(plan_of({"name": "FedAdam", "eta": 0.01, "min-train-nodes": 4}))
    assert isinstance(adam, FedAdam) and adam.eta == 0.01 and adam.min_train_nodes == 4


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        ({"name": "FedAdam", "etta": 0.1}, "strategy.etta: unknown key for 'FedAdam'; did you mean 'eta'?"),
        ({"name": "FedAvg", "zzzzzz": 0.1}, "strategy.zzzzzz: unknown key for 'FedAvg'; valid keys: fraction_train"),
        ({"name": "FedAdam", "eta": "fast"}, "strategy.eta: Input should be a valid number \\(given: 'fast'"),
        ({"name": "FedAdam", "eta": True}, "strategy.eta: "),
        ({"name": "FedAvg", "min_train_nodes": 1.5}, "strategy.min_train_nodes: "),
        ({"name": "FedAvg", "train_metrics_aggr_fn": "x"}, "strategy.train_metrics_aggr_fn: "),
        ({"name": "FedAvgM", "server-momentum": 0.9, "server_momentum": 0.8}, "given twice"),
        ({"name": "QFedAvg"}, "strategy.client_learning_rate: required by 'QFedAvg', but missing"),
        ({"name": "FedTrimmedAvg", "beta": 0.7}, "strategy 'FedTrimmedAvg' refuses its options: ValueError: "),
        ({"name": "FedAvg", "min_train_nodes": 7}, "7 nodes would be waited for without end; the plan has 6"),
        ({"name": "FedAvg", "min-available-nodes": 7}, "strategy.min_available_nodes: 7 nodes would be waited for"),
        ({"name": "FedAvg", "min_evaluate_nodes": 8}, "strategy.min_evaluate_nodes: 8 nodes .* the plan has 7"),
        ({"name": "FedAvg", "weighted_by_key": "loss"}, "strategy.weighted_by_key: is 'num-examples' in every reply"),
        ({"name": "FedAvg", "quorum": 7}, "strategy.quorum: 7 replies can't come from 6 participants"),
    ],
)
def test_options_that_can_not_work(strategy: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        build_strategy(plan_of(strategy))


def test_an_unknown_strategy_names_the_nearest() -> None:
    with pytest.raises(registry.UnknownPlugin, match="'FedMedium'; nearest: FedMedian"):
        build_strategy(plan_of("FedMedium"))
    assert isinstance(build_strategy(plan_of("flwr.serverapp.strategy.FedMedian")), FedMedian)


@pytest.mark.parametrize(
    ("strategy", "n", "told"),
    [
        (ROBUST, 4, "multi-krum with f = 1 needs 5 training participants; the plan has 4; the largest f for 4 is 0"),
        ({**ROBUST, "f": 2}, 6, "multi-krum with f = 2 needs 7 training participants; .* the largest f for 6 is 1"),
        ({**ROBUST, "f": 0}, 2, "multi-krum with f = 0 needs 3 .* choose a rule that needs fewer"),
        ({**ROBUST, "keep": 6}, 6, "needs 7 training participants; the plan has 6"),
        ({"name": "robust", "rule": "median", "f": 3}, 6, "median with f = 3 needs 7 .* the largest f for 6 is 2"),
        ({"name": "robust", "rule": "mean", "f": 1}, 6, "mean withstands no lying participant; give f = 0"),
        ({"name": "robust", "rule": "krum"}, 9, "f: required by krum; .*; 9 training participants allow f up to 3"),
        ({"name": "robust"}, 6, "f: required by arc \\+ nnm \\+ geometric-median; .*; 6 training .* allow f up to 2"),
        ({"name": "robust", "rule": "krum"}, 2, "2 training participants allow none"),
        ({"name": "robust", "rule": "bulyan", "f": 1}, 6, "bulyan with f = 1 needs 7 .* the largest f for 6 is 0"),
        ({"name": "robust", "rule": "krum", "pre": ["bucketing"], "f": 1}, 6, "needs 9 .* the largest f for 6 is 0"),
        ({"name": "robust", "rule": "mda", "f": 13}, 30, "mda is exact .* stops at f = 12; the largest f for 30 is 12"),
        ({"name": "robust", "rule": "fltrust", "f": 1, "reference": "site9"}, 6, "named 'site9'; did you mean 'site"),
        ({"name": "robust", "rule": "median", "f": 1, "pre": ["clip"]}, 6, "strategy.clip_norm: required"),
    ],
)
def test_plans_without_a_guarantee_are_refused_with_what_would_do(strategy: dict[str, Any], n: int, told: str) -> None:
    for check in (build_strategy, check_guarantee):
        with pytest.raises(PlanError, match=told):
            check(plan_of(strategy, n))


def test_guarantees_are_readable() -> None:
    lines = check_guarantee(plan_of({**ROBUST, "weights": "examples"}))
    assert lines[0].startswith("multi-krum tolerates f = 1 of 6 training participants (needs n >= 5)")
    assert "without mixing first" in lines[1] and "believes the number of examples" in lines[2]
    assert len(check_guarantee(plan_of({"name": "robust", "f": 1}))) == 1
    clipped = check_guarantee(plan_of({**ROBUST, "pre": ["arc"], "reduce_f": True}))
    assert "goes on with a smaller f" in clipped[0] and "without mixing first" in clipped[1]
    trusting = check_guarantee(plan_of({"name": "robust", "rule": "fltrust", "f": 5, "reference": "site 0"}))
    assert trusting[1] == "fltrust trusts 'site 0': if it lies, the model is its own"
    assert "no guarantee" in check_guarantee(plan_of({"name": "robust", "rule": "mean"}))[0]


PLUGIN = """
from flwr.serverapp.strategy import FedAvg
from astrofed.shared.registry import register

@register("strategies", "Cautious")
class Cautious(FedAvg):
    "Averages with care."
    def __init__(self, care: int = 1, notes: list[str] | None = None, **kwargs):
        super().__init__(**kwargs)
        self.care, self.notes = care, notes

@register("strategies", "Moody")
class Moody(FedAvg):
    "Raises."
    def __init__(self, mood):
        raise RuntimeError("not today")
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[None]:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    added = registry.load_plugin_file(path)
    yield
    for item in added:
        del registry._added["strategies"][registry.normalise(item.name)]


@pytest.mark.usefixtures("plugin")
def test_a_users_strategy_may_pass_options_on_to_flowers() -> None:
    strategy: Any = build_strategy(plan_of({"name": "cautious", "care": 3, "notes": ["a"], "fraction_train": 0.5}))
    assert (strategy.care, strategy.notes, strategy.fraction_train, strategy.min_train_nodes) == (3, ["a"], 0.5, 1)
    with pytest.raises(PlanError, match="unknown key for 'cautious'; did you mean 'care'"):
        build_strategy(plan_of({"name": "cautious", "car": 3}))
    with pytest.raises(PlanError, match="strategy 'Moody' refuses its options: RuntimeError: not today"):
        build_strategy(plan_of({"name": "Moody", "mood": 1}))


def test_qfedavg_with_what_it_requires() -> None:
    strategy = build_strategy(plan_of({"name": "QFedAvg", "client-learning-rate": 0.1, "train-loss-key": "loss"}))
    assert isinstance(strategy, QFedAvg) and strategy.train_loss_key == "loss"
