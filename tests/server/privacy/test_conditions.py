"""Plans and statistics for which central privacy's epsilon would not hold are refused by name, with the mend."""

from typing import Any

import numpy as np
import pytest

from astrofed.server.privacy.conditions import StatisticsTell, check_statistics
from astrofed.server.strategies.build import build_strategy, check_guarantee
from astrofed.server.strategies.central import PrivateMean
from astrofed.shared.plan import Plan, PlanError, load_plan

CENTRAL = {"epsilon": 4.0, "delta": 0.01, "sampling_rate": 0.5}


def plan_of(strategy: Any, central: dict[str, Any] | None, n: int = 6) -> Plan:
    participants = [{"name": f"site {i}", "data": "bundled:x"} for i in range(n)]
    source = {"name": "p", "rounds": 10, "task": "t", "model": "m", "strategy": strategy, "participants": participants}
    return load_plan(source if central is None else {**source, "central_privacy": central})


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        ({"name": "robust", "rule": "median", "f": 1}, "a robust rule chooses .* set strategy.name = 'private-mean'"),
        ({"name": "robust", "f": 1}, "by one another"),
        ("FedAvg", "'FedAvg' neither clips updates nor gives them fixed weights"),
        ("FedAdam", "'FedAdam' neither clips"),
        ({"name": "private-mean", "rule": "krum"}, "strategy.rule: a robust rule"),
        ({"name": "private-mean", "pre": ["nnm"]}, "strategy.pre: a robust rule"),
        ({"name": "private-mean", "f": 1}, "strategy.f: a robust rule"),
        ({"name": "private-mean", "weights": "examples"}, "choose its own weight"),
        ({"name": "private-mean", "quorum": 2}, "strategy.quorum: 2 .* a missing reply is an update of zero"),
        ({"name": "private-mean", "momentun": 0.5}, "strategy.momentun: .*momentum"),
    ],
)
def test_what_would_void_epsilon(strategy: Any, told: str) -> None:
    for check in (build_strategy, check_guarantee):
        with pytest.raises(PlanError, match=told):
            check(plan_of(strategy, CENTRAL))


@pytest.mark.parametrize(
    ("central", "told"),
    [
        (None, "needs a \\[central_privacy\\] section"),
        ({**CENTRAL, "delta": 0.2}, "give one of 6 participants away whole; give less than 0.167"),
        ({"epsilon": 4, "delta": 0.01, "mechanism": "tree", "cohorts": 7}, "7 groups can't be made of 6"),
    ],
)
def test_sections_that_protect_nobody(central: dict[str, Any] | None, told: str) -> None:
    with pytest.raises(PlanError, match=told):
        build_strategy(plan_of("private-mean", central))


@pytest.mark.parametrize(
    ("central", "told"),
    [
        ({"delta": 0.01}, "exactly one of epsilon and noise_multiplier"),
        ({"epsilon": 1, "noise_multiplier": 1, "delta": 0.01}, "exactly one"),
        ({"epsilon": 1, "delta": 0.01, "mechanism": "tree"}, "needs cohorts"),
        (
            {"epsilon": 1, "delta": 0.01, "mechanism": "tree", "cohorts": 2, "sampling_rate": 0.5},
            "remove sampling_rate",
        ),
        ({"epsilon": 1, "delta": 0.01, "mechanism": "tree", "cohorts": 2, "clipping": "adaptive"}, "one norm"),
        ({"epsilon": 1, "delta": 0.01, "cohorts": 2}, "cohorts is for mechanism = 'tree'"),
        ({"epsilon": 1, "delta": 0.01, "clipping_quantile": 0.7}, "clipping_quantile is for"),
        ({"epsilon": 1, "delta": 0.01, "sampling_rat": 0.7}, "sampling_rate"),
    ],
)
def test_sections_that_make_no_sense(central: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        plan_of("private-mean", central)


def test_the_plan_check_prints_the_accounted_epsilon_and_what_is_not_covered() -> None:
    plan = plan_of("private-mean", CENTRAL)
    assert isinstance(build_strategy(plan), PrivateMean)
    text = "\n".join(check_guarantee(plan))
    assert "(epsilon = 3.99" in text and "each of the 6 training participants as a whole" in text
    assert "held-out data" in text and "not against the server" in text
    assert "at most 1 / 3 in a round" in text and "expect to learn next to nothing" not in text
    tree = plan_of("private-mean", {"noise_multiplier": 9.0, "delta": 0.01, "mechanism": "tree", "cohorts": 3})
    text = "\n".join(check_guarantee(tree))
    assert "one of 3 groups at a time" in text and "4.5 clipping norms on each weight" in text


@pytest.mark.parametrize("mode", ["nas", "evolution"])
def test_a_search_releases_more_models_than_are_counted(mode: str) -> None:
    plan = plan_of("private-mean", CENTRAL).model_copy(update={"mode": mode})
    with pytest.raises(PlanError, match="a search releases the models of all its candidates"):
        build_strategy(plan)


def test_statistics_that_differ_are_refused_and_constants_pass() -> None:
    plan = plan_of("private-mean", CENTRAL)
    constants = {"mean:scale": np.ones(3)}
    check_statistics(plan, {"a": constants, "b": {}, "c": {"mean:scale": np.ones(3)}})
    for other in ({"mean:scale": np.array([1.0, 1.0, 1.1])}, {"mean:other": np.ones(3)}):
        with pytest.raises(StatisticsTell, match="pools statistics"):
            check_statistics(plan, {"a": constants, "b": other})
    check_statistics(plan_of("FedAvg", None), {"a": constants, "b": {"mean:scale": np.zeros(3)}})
