"""Averaging block by block: who counts in which block, what a liar gains, and which plans are refused."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from astrofed.server.nodes import GridView
from astrofed.server.strategies.blocks import SHARED, BlockMean, block_of
from astrofed.server.strategies.build import build_strategy, check_guarantee
from astrofed.shared.arrays import from_numpy, to_numpy
from astrofed.shared.plan import PlanError, load_plan

MODEL = {
    "head": np.zeros(2, np.float32),
    "encoders.a.w": np.ones(3, np.float32),
    "encoders.b.w": np.ones(1, np.float32),
}
SITES = {"ann": 1, "bob": 2, "cis": 3, "dan": 4}
ALLOWED = {"ann": ["a", "b"], "bob": ["a"], "cis": ["a"], "dan": ["b"]}


def plan(**strategy: Any) -> Any:
    """A real plan with the modalities of four sites."""
    given = {"ann": ["cube", "series"], "bob": ["cube"], "cis": ["cube"], "dan": ["series"]}
    return load_plan(
        {
            "name": "blocks",
            "mode": "multimodal",
            "task": {"name": "surrogate", "modalities": given},
            "model": {"name": "surrogate", "width": 8, "heads": 1, "depth": 1},
            "strategy": {"name": "block-mean", **strategy},
            "participants": [{"name": name, "data": "bundled:worlds/earthlike"} for name in SITES],
        }
    )


class _Fake:
    """Of a plan, what `declare` looks at."""

    def __init__(self) -> None:
        self.training, self.rounds = type("S", (), {"decay": 1.0})(), 1
        self.trainers = [type("P", (), {"name": name})() for name in SITES]
        self.task = type("T", (), {"options": {"modalities": ALLOWED}})()


def built(f: int | None = None, rule: str | None = None, **options: Any) -> BlockMean:
    strategy = BlockMean(rule, (), f, "equal", options)
    strategy.enrolled(SITES)
    strategy.declare(_Fake(), [block_of(name) for name in MODEL])  # type: ignore[arg-type]
    return strategy


def round_of(
    strategy: BlockMean, changes: Mapping[str, Mapping[str, Sequence[float]]], model: Mapping[str, Any] = MODEL
) -> dict[str, Any]:
    """One round in which each site adds its changes; sites in the order given."""
    list(strategy.configure_train(1, from_numpy(model), ConfigRecord(), GridView(None, list(SITES.values()))))
    replies = []
    for name, own in changes.items():
        arrays = {key: (value + np.float32(own.get(key, 0.0))).astype(np.float32) for key, value in model.items()}
        order = Message(content=RecordDict(), dst_node_id=SITES[name], message_type="train")
        metrics = MetricRecord({"num-examples": 5, "loss": 1.0})
        replies.append(Message(RecordDict({"arrays": from_numpy(arrays), "metrics": metrics}), reply_to=order))
    arrays_record, _ = strategy.aggregate_train(1, replies)
    return {} if arrays_record is None else to_numpy(arrays_record)


HONEST: dict[str, dict[str, Any]] = {
    "ann": {"head": [1, 0], "encoders.a.w": [3, 0, 0], "encoders.b.w": [2]},
    "bob": {"head": [1, 1], "encoders.a.w": [3, 3, 0]},
    "cis": {"head": [1, 2], "encoders.a.w": [3, 0, 3]},
    "dan": {"head": [1, 1], "encoders.b.w": [4]},
}


def test_names_tell_blocks() -> None:
    assert block_of("members.0.encoders.cube.first.weight") == "cube"
    assert block_of("members.1.direct.encoders.series.bias") == "series"
    assert block_of("members.0.head") == block_of("encoders") == SHARED


def test_each_block_is_the_mean_of_those_who_trained_it() -> None:
    model = round_of(built(), HONEST)
    np.testing.assert_allclose(model["head"], [1, 1])
    np.testing.assert_allclose(model["encoders.a.w"], [4, 2, 2])
    np.testing.assert_allclose(model["encoders.b.w"], [4])
    assert list(model) == list(MODEL)


def test_the_order_of_replies_changes_nothing() -> None:
    strategy = built(rule="median", f=0)
    one, other = round_of(strategy, HONEST), round_of(strategy, dict(reversed(HONEST.items())))
    assert all(np.array_equal(one[key], other[key]) for key in one)


def test_a_block_that_nobody_trained_stays_to_the_bit() -> None:
    changes = {name: {"head": own["head"]} for name, own in HONEST.items()}
    model = round_of(built(), changes)
    assert np.array_equal(model["encoders.a.w"], MODEL["encoders.a.w"])


def test_who_lies_about_its_blocks_gains_nothing() -> None:
    strategy = built()
    lie = {**HONEST, "bob": {**HONEST["bob"], "encoders.b.w": [1e6]}}
    model = round_of(strategy, lie)
    np.testing.assert_allclose(model["encoders.b.w"], [4])
    assert strategy.notes == ["bob changed block 'b', which the plan doesn't give it: ignored"]


def test_a_liar_in_its_own_block_is_withstood_there() -> None:
    strategy = built(rule="median", f=1, trust={"b": ["ann"]})
    lie = {**HONEST, "cis": {"head": [1e6, -1e6], "encoders.a.w": [-1e6, 1e6, 1e6]}}
    model = round_of(strategy, lie)
    assert np.abs(model["encoders.a.w"] - 1).max() <= 3 and np.abs(model["head"]).max() <= 2
    np.testing.assert_allclose(model["encoders.b.w"], [3])  # ann's alone: dan is not trusted with it
    assert any("dan changed block 'b'" in note for note in strategy.notes)


def test_too_few_trainers_leave_a_block_as_it_was_and_say_so() -> None:
    strategy = built(rule="median", f=1, trust={"b": ["ann"]})
    silent = {**HONEST, "cis": {"head": [1, 1]}}
    model = round_of(strategy, silent)
    assert np.array_equal(model["encoders.a.w"], MODEL["encoders.a.w"])
    assert any("block 'a' left as it was" in note for note in strategy.notes)
    np.testing.assert_allclose(model["head"], [1, 1])


def test_too_few_replies_skip_the_round() -> None:
    strategy = built(rule="median", f=1, trust={"b": ["ann"]})
    assert round_of(strategy, {"ann": HONEST["ann"], "bob": HONEST["bob"]}) == {}
    assert strategy.skipped is not None and "needs 3" in strategy.skipped


def test_weights_are_those_of_the_shared_block() -> None:
    strategy = built(rule="geometric-median", f=0)
    round_of(strategy, HONEST)
    assert strategy.weights is not None and sum(strategy.weights.values()) == pytest.approx(1)
    assert set(strategy.weights) == set(SITES.values())


def test_the_servers_momentum_carries_on_and_outlives_a_stop() -> None:
    whole, model = built(server_momentum=0.5), MODEL
    for _ in range(2):
        model = round_of(whole, HONEST, model)
    np.testing.assert_allclose(model["head"], [1 + 1.5, 1 + 1.5])
    first = built(server_momentum=0.5)
    halfway = round_of(first, HONEST)
    resumed = built(server_momentum=0.5)
    resumed.load_state_dict(first.state_dict())
    again = round_of(resumed, HONEST, halfway)
    assert all(np.array_equal(again[key], model[key]) for key in model)
    assert built().state_dict() == {}


def test_the_servers_adam_takes_steps_of_its_rate_and_outlives_a_stop() -> None:
    """The first step of Adam is its rate along the sign of the mean change (Kingma and Ba 2015, section 2.1)."""
    strategy = built(server_rate=0.25)
    model = round_of(strategy, HONEST)
    np.testing.assert_allclose(model["head"], [0.25, 0.25], rtol=1e-6)
    np.testing.assert_allclose(model["encoders.b.w"], [1.25], rtol=1e-6)
    resumed = built(server_rate=0.25)
    resumed.load_state_dict(strategy.state_dict())
    halved = {name: {key: np.asarray(v) / 2 for key, v in own.items()} for name, own in HONEST.items()}
    again, whole = round_of(resumed, halved, model), round_of(strategy, halved, model)
    assert all(np.array_equal(again[key], whole[key]) for key in model)
    first, second = (0.9 * 0.1 + 0.1 * 0.5) / (1 - 0.9**2), (0.99 * 0.01 + 0.01 * 0.25) / (1 - 0.99**2)
    np.testing.assert_allclose(again["head"] - model["head"], 0.25 * first / np.sqrt(second), rtol=1e-5)


def test_a_plan_with_too_few_trainers_of_a_block_is_refused() -> None:
    with pytest.raises(PlanError, match=r"block 'series' is trained by 2 .* needs 3.*strategy\.trust"):
        build_strategy(plan(rule="median", f=1))
    trusting = plan(rule="median", f=1, trust={"series": ["ann"]})
    lines = check_guarantee(trusting)
    assert any("block 'series' is trusted to ann" in line for line in lines)
    assert any("block 'cube': 3 sites" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"trust": {"radar": ["ann"]}}, "no block 'radar'"),
        ({"trust": {"series": ["bob"]}}, "'bob' trains no such block"),
        ({"momentum": 0.5}, "server_momentum"),
        ({"rule": "centred-clipping", "f": 1, "trust": {"series": ["ann"]}}, "start = 'model'"),
        ({"rule": "fltrust", "reference": "ann", "f": 0}, "whole models"),
        ({"server_momentum": 1.0}, "server_momentum"),
        ({"server_momentun": 0.5}, "unknown key"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        build_strategy(plan(**options))


def test_a_rule_that_starts_from_the_model_works() -> None:
    strategy = built(rule="centred-clipping", f=1, start="model", trust={"b": ["ann"]})
    model = round_of(strategy, HONEST)
    assert np.isfinite(model["encoders.a.w"]).all()
