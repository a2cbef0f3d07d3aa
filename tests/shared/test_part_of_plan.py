"""Parts of a signed plan: what a search or an evolution makes of it is let in, and whatever goes beyond it is not."""

from collections.abc import Iterator
from typing import Any

import pytest

from astrofed.server.evolution.changes import corners
from astrofed.server.evolution.lives import Place
from astrofed.server.evolution.plans import look_plan, member_plan
from astrofed.server.search.differentiable import mixture_plan
from astrofed.server.search.run import _for_candidates, with_values
from astrofed.server.search.space import Space, candidate_plan
from astrofed.shared.part_of_plan import NotAPart, check_part
from astrofed.shared.plan import Plan, load_plan

BASE: dict[str, Any] = {
    "name": "whole",
    "rounds": 4,
    "task": {"name": "planets"},
    "model": {"name": "mlp"},
    "training": {"batch_size": 32, "learning_rate": 0.003, "decay": 0.1, "warmup": 1},
    "strategy": {"name": "robust", "rule": "median", "f": 1},
    "privacy": {"epsilon": 4.0, "delta": 1e-5, "unit": "planet"},
    "participants": [
        *({"name": name, "data": "planets"} for name in ("tess", "k2", "keck")),
        {"name": "kepler", "data": "planets", "role": "evaluate"},
    ],
}
SPACE = {"model.hidden": [[8], [16, 16]], "training.learning_rate": [1e-3, 1e-2]}
KEYS = {"training.learning_rate": {"low": 1e-4, "high": 1e-1}, "training.batch_size": {"low": 8, "high": 64}}


def of_mode(mode: str, **changes: Any) -> Plan:
    sections: dict[str, dict[str, Any]] = {
        "nas": {"search": {"space": SPACE, "candidates": 4, "population": 2}},
        "evolution": {"evolution": {"keys": KEYS, "rounds": 2}},
        "federated": {},
    }
    return load_plan({**BASE, "mode": mode, **sections[mode], **changes})


def mixing() -> Plan:
    search = {"algorithm": "differentiable", "space": {"model.hidden": [[8], [16]]}}
    data = {key: value for key, value in BASE.items() if key != "privacy"}
    return load_plan({**data, "mode": "nas", "search": search})


def parts() -> Iterator[tuple[Plan, Plan]]:
    nas, evolution, mixed = of_mode("nas"), of_mode("evolution"), mixing()
    for choices in (((8,), 1e-3), ((16, 16), 1e-2)):
        yield nas, candidate_plan(_for_candidates(nas, (1, 3)), choices, "candidate 1")
    yield nas, with_values(nas, {"model.hidden": (16, 16), "training.learning_rate": 1e-2})
    yield mixed, mixture_plan(mixed, Space(mixed.search.space), 2)  # type: ignore[union-attr]
    assert evolution.evolution is not None
    for values in corners(evolution.evolution):
        yield evolution, member_plan(evolution, values, ["k2"], Place(island=2, generation=1, member=1))
        yield evolution, look_plan(evolution, values, "before")
        yield evolution, with_values(evolution, values)


@pytest.mark.parametrize(("whole", "part"), list(parts()))
def test_all_that_a_search_or_an_evolution_makes_is_a_part(whole: Plan, part: Plan) -> None:
    assert part != whole
    check_part(whole, part)


@pytest.mark.parametrize("mode", ["nas", "evolution"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy": {"epsilon": 5.0, "delta": 1e-5, "unit": "planet"}}, "'privacy'"),
        ({"privacy": None}, "'privacy'"),
        ({"rounds": 5}, "5 rounds"),
        ({"task": {"name": "surrogate"}}, "'task'"),
        ({"model": {"name": "mlp", "hidden": [32]}}, "'model.*"),
        ({"training": {"batch_size": 100, "learning_rate": 0.01}}, "'training.*"),
        ({"training": {"batch_size": 32, "learning_rate": 0.5}}, "'training.learning_rate' be 0.5"),
        ({"training": {"batch_size": 32, "learning_rate": 0.01, "epochs": 9}}, "'training'"),
        ({"participants": [{"name": "tess", "data": "other"}]}, "'participants'"),
        ({"participants": [{"name": "elsewhere", "data": "planets"}]}, "'participants'"),
        ({"mode": "customer"}, "'customer'|'mode'"),
    ],
)
def test_what_goes_beyond_the_signed_plan_is_named(mode: str, changes: dict[str, Any], words: str) -> None:
    whole = of_mode(mode)
    data = {**BASE, "mode": "federated", "strategy": {"name": "FedAvg"}}
    data["training"] = {**BASE["training"], "learning_rate": 0.01}
    data |= {"model": {"name": "mlp", "hidden": [8]}} if mode == "nas" else {}
    check_part(whole, load_plan(data))
    changed = {key: value for key, value in {**data, **changes}.items() if value is not None}
    with pytest.raises(NotAPart, match=words):
        check_part(whole, load_plan(changed))


def test_a_mixture_holds_nothing_beyond_the_space() -> None:
    whole = mixing()
    data = mixture_plan(whole, Space({"model.hidden": ((8,), (32,))}), 2).to_dict()
    with pytest.raises(NotAPart, match=r"'model.hidden' be \[32\]"):
        check_part(whole, load_plan(data))
    with pytest.raises(NotAPart, match="trains no mixture"):
        check_part(of_mode("nas"), load_plan(data))


def test_other_modes_have_no_parts() -> None:
    whole = of_mode("federated")
    check_part(whole, of_mode("federated"))
    with pytest.raises(NotAPart, match="mode 'federated' has no parts"):
        check_part(whole, of_mode("federated", seed=4))
