"""The robust strategy through Flower's hooks: what it sends, what it makes of screened replies, what it says."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from astrofed.server.nodes import GridView
from astrofed.server.strategies.robust import RobustStrategy
from astrofed.server.strategies.shares import capped
from astrofed.shared.arrays import from_numpy, to_numpy
from astrofed.shared.plan import PlanError

REFERENCE = {"w": np.zeros(3, np.float32), "steps": np.array(3)}


def replies_of(models: Mapping[int, Any], metrics: Mapping[int, Mapping[str, float]] | None = None) -> list[Message]:
    replies = []
    for node, model in models.items():
        order = Message(content=RecordDict(), dst_node_id=node, message_type="train")
        arrays = from_numpy({"w": np.asarray(model, np.float32), "steps": np.array(4)})
        own = {"num-examples": 10, "loss": 1.0} if metrics is None else metrics[node]
        replies.append(Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(dict(own))}), reply_to=order))
    return replies


def one_round(
    strategy: RobustStrategy, replies: Sequence[Message]
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    nodes = GridView(None, [reply.metadata.src_node_id for reply in replies])
    list(strategy.configure_train(1, from_numpy(REFERENCE), ConfigRecord(), nodes))
    arrays, metrics = strategy.aggregate_train(1, replies)
    return (to_numpy(arrays) if arrays else None), (dict(metrics) if metrics else None)


HONEST = {3: [1.0, 2, 3], 9: [1.1, 2, 3], 4: [0.9, 2, 3], 7: [1.0, 2.1, 3]}


def test_all_nodes_are_asked_in_order_with_the_same_record() -> None:
    strategy = RobustStrategy("median", f=1)
    config = ConfigRecord({"plan": "x"})
    arrays = from_numpy(REFERENCE)
    for kind, configure in (("train", strategy.configure_train), ("evaluate", strategy.configure_evaluate)):
        messages = list(configure(5, arrays, config, GridView(None, [8, 2, 6])))
        assert [(m.metadata.dst_node_id, m.metadata.message_type) for m in messages] == [
            (8, kind),
            (2, kind),
            (6, kind),
        ]
        assert all(m.content is messages[0].content for m in messages)
        assert messages[0].content.array_records["arrays"] is arrays
        assert dict(messages[0].content.config_records["config"]) == {"plan": "x", "server-round": 5}


def test_multi_krum_leaves_the_liar_out_and_says_so() -> None:
    strategy = RobustStrategy("multi-krum", f=1)
    metrics = {node: {"num-examples": 10, "loss": 1.0} for node in HONEST}
    arrays, mean = one_round(
        strategy, replies_of({**HONEST, 5: [-50, 0, 0]}, {**metrics, 5: {"num-examples": 10, "loss": 1e9}})
    )
    assert arrays is not None
    np.testing.assert_allclose(arrays["w"], np.mean(list(HONEST.values()), axis=0), rtol=1e-6)
    assert arrays["w"].dtype == np.float32 and arrays["steps"] == 4 and list(arrays) == list(REFERENCE)
    assert strategy.weights == {3: 0.25, 9: 0.25, 4: 0.25, 7: 0.25, 5: 0.0}
    assert list(strategy.left_out) == [5] and "multi-krum left it out: distance 51.1 from" in strategy.left_out[5]
    assert mean == {"loss": 1.0}, "the liar's metrics do not count either"
    assert strategy.skipped is None


def test_one_selected_reply_goes_on_as_the_bytes_that_came() -> None:
    replies = replies_of({**HONEST, 5: [50, 50, 50]})
    strategy = RobustStrategy("krum", f=1)
    list(strategy.configure_train(1, from_numpy(REFERENCE), ConfigRecord(), GridView(None, [3, 9, 4, 7, 5])))
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None and list(arrays) == list(REFERENCE)
    sent = [reply.content.array_records["arrays"]["w"].data for reply in replies]
    assert any(arrays["w"].data is data for data in sent)
    assert arrays["steps"].numpy() == 4


def test_rules_on_single_coordinates_have_no_weights() -> None:
    strategy = RobustStrategy("trimmed-mean", f=1)
    arrays, mean = one_round(strategy, replies_of({**HONEST, 5: [-50, 0, 9e30]}))
    assert arrays is not None and 0.9 <= arrays["w"][0] <= 1.1 and arrays["w"][2] == 3
    assert strategy.weights is None and strategy.left_out == {} and mean == {"loss": 1.0}


def test_a_round_with_too_few_replies_is_skipped_and_the_next_one_is_not() -> None:
    strategy = RobustStrategy("krum", f=1)
    assert one_round(strategy, replies_of(HONEST)) == (None, None)
    assert strategy.skipped == "4 usable replies; krum needs 5 to withstand f = 1"
    assert strategy.weights is None and strategy.left_out == {}
    assert one_round(strategy, []) == (None, None)
    arrays, _ = one_round(strategy, replies_of({**HONEST, 5: [1, 2, 3]}))
    assert arrays is not None and strategy.skipped is None


def test_without_a_rule_updates_are_shortened_and_mixed_before_the_geometric_median() -> None:
    strategy = RobustStrategy(f=1)
    assert strategy.pipeline.name == "arc + nnm + geometric-median"
    arrays, _ = one_round(strategy, replies_of({**HONEST, 5: [-50, 0, 0]}))
    assert arrays is not None and strategy.weights is not None
    np.testing.assert_allclose(arrays["w"], np.mean(list(HONEST.values()), axis=0), rtol=1e-6)
    assert strategy.left_out[5].startswith("arc + nnm + geometric-median left it out: distance 51.1")


def test_examples_weigh_where_the_rule_knows_weights() -> None:
    counts = {3: 10, 9: 30}
    metrics = {node: {"num-examples": count, "loss": float(count)} for node, count in counts.items()}
    strategy = RobustStrategy("mean", weights="examples")
    arrays, mean = one_round(strategy, replies_of({3: [0, 0, 0], 9: [4, 0, 0]}, metrics))
    assert arrays is not None and arrays["w"][0] == 3 and strategy.weights == {3: 0.25, 9: 0.75}
    assert mean == {"loss": 25.0}
    for rule, pre in (("krum", ()), ("median", ()), ("multi-krum", ("nnm",))):
        with pytest.raises(PlanError, match="counts all participants alike; remove weights = 'examples'"):
            RobustStrategy(rule, pre, f=1, weights="examples")


def test_options_are_the_rules() -> None:
    strategy = RobustStrategy("multi-krum", f=1, options={"keep": 2})
    one_round(strategy, replies_of({**HONEST, 5: [-50, 0, 0]}))
    assert strategy.weights is not None and sorted(strategy.weights.values()) == [0, 0, 0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"rule": "nnm", "f": 1}, "strategy.rule: 'nnm' mixes updates and leaves several; write pre = ['nnm']"),
        ({"rule": "median", "pre": ["krum"], "f": 1}, "strategy.pre: 'krum' is a rule, which ends the aggregation"),
        ({"rule": "Multi_Krum"}, "strategy.f: required by multi-krum"),
        (
            {"rule": "krum", "f": 1, "options": {"keep": 2}},
            "strategy.keep: unknown key for 'krum'; valid keys: device, momentum, ",
        ),
        ({"rule": "multi-krum", "f": 1, "options": {"kep": 2}}, "strategy.kep: unknown key .* did you mean 'keep'"),
        ({"rule": "multi-krum", "f": 1, "options": {"keep": 0}}, "strategy.keep: .*greater than or equal to 1"),
    ],
)
def test_what_can_not_work_is_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told.replace("[", r"\[")):
        RobustStrategy(**arguments)


def test_evaluation_gives_the_mean_of_what_all_report() -> None:
    strategy = RobustStrategy("mean")
    values = ({"loss": 1.0, "num-examples": 1}, {"loss": 3.0, "num-examples": 9, "own": 1.0})
    replies = [
        Message(
            RecordDict({"metrics": MetricRecord(dict(value))}),
            reply_to=Message(content=RecordDict(), dst_node_id=node, message_type="evaluate"),
        )
        for node, value in enumerate(values)
    ]
    assert dict(strategy.aggregate_evaluate(1, replies) or {}) == {"loss": 2.0}
    assert strategy.aggregate_evaluate(1, []) is None
    strategy.summary()


def test_without_momentum_or_a_centre_no_state_is_kept() -> None:
    strategy = RobustStrategy("mean")
    one_round(strategy, replies_of(HONEST))
    assert strategy.state_dict() == {}
    strategy.load_state_dict({})
    assert isinstance(from_numpy(REFERENCE), ArrayRecord)


def named(**keys: Any) -> RobustStrategy:
    strategy = RobustStrategy(**keys)
    strategy.enrolled({"alma": 3, "vlt": 9, "lick": 4, "keck": 7, "pic du midi": 5})
    return strategy


def test_momentum_is_a_running_mean_of_each_ones_updates_and_survives_a_stop() -> None:
    """Steps of 4, then 0 and then 0 with factor 1/2 leave means of 4, 2 and 1; a third that is away keeps its own."""
    options = {"momentum": 0.5}
    strategy = named(rule="mean", options=options)
    arrays, _ = one_round(strategy, replies_of({3: [4, 0, 0], 9: [0, 4, 0]}))
    assert arrays is not None and arrays["w"].tolist() == [2, 2, 0] and strategy.notes == []
    one_round(strategy, replies_of({3: [0, 0, 0]}))
    assert strategy.notes == ["momentum of vlt is kept as it was: no usable reply this round"]
    resumed = named(rule="mean", options=options)
    resumed.load_state_dict(strategy.state_dict())
    for one in (strategy, resumed):
        arrays, _ = one_round(one, replies_of({3: [0, 0, 0], 9: [0, 0, 0]}))
        assert arrays is not None and arrays["w"].tolist() == [0.5, 1, 0] and arrays["steps"] == 4


def test_momentum_of_the_largest_numbers_stays_finite() -> None:
    strategy = named(rule="median", f=1, options={"momentum": 0.9})
    for sign in (1, -1, 1):
        arrays, _ = one_round(strategy, replies_of({3: [1, 0, 0], 9: [1, 0, 0], 4: [sign * 3.4e38] * 3}))
        assert arrays is not None and arrays["w"].tolist() == [1, 0, 0]
        assert all(np.isfinite(array).all() for array in strategy.state_dict().values())


def test_a_centre_starts_from_the_last_step_also_after_a_stop() -> None:
    keys: dict[str, Any] = {"rule": "centred-clipping", "f": 1, "options": {"tau": 1.0, "iterations": 1}}
    strategy = named(**keys)
    same = {node: [3, 0, 0] for node in (3, 9, 4)}
    first, _ = one_round(strategy, replies_of(same))
    assert first is not None and first["w"].tolist() == [1, 0, 0]
    resumed = named(**keys)
    resumed.load_state_dict(strategy.state_dict())
    for one in (strategy, resumed):
        second, _ = one_round(one, replies_of(same))
        assert second is not None and second["w"].tolist() == [2, 0, 0]
    fresh = named(**{**keys, "options": {**keys["options"], "start": "model"}})
    for _ in range(2):
        again, _ = one_round(fresh, replies_of(same))
        assert again is not None and again["w"].tolist() == [1, 0, 0]
    assert fresh.state_dict() == {}


def test_a_plan_may_allow_a_smaller_f() -> None:
    strategy = RobustStrategy("krum", f=2, options={"reduce_f": True})
    arrays, _ = one_round(strategy, replies_of({**HONEST, 5: [-50, 0, 0]}))
    assert arrays is not None and strategy.notes == ["f lowered from 2 to 1: 5 usable replies, 7 needed"]
    assert one_round(strategy, replies_of(HONEST)) == (None, None), "f = 0 would be no protection at all"
    assert strategy.skipped == "4 usable replies; krum needs 7 to withstand f = 2"
    strategy = RobustStrategy("krum", f=1, options={"reduce_f": True})
    one_round(strategy, replies_of({**HONEST, 5: [-50, 0, 0]}))
    assert strategy.notes == []


def test_a_trusted_reference_outvotes_any_number_and_is_missed() -> None:
    strategy = named(rule="fltrust", f=3, options={"reference": "alma"})
    arrays, _ = one_round(strategy, replies_of({3: [1, 0, 0], 9: [-9, 0, 0], 4: [-9, 0, 0], 7: [0, 5, 0]}))
    assert arrays is not None and arrays["w"].tolist() == [1, 0, 0]
    assert strategy.left_out[9] == "fltrust left it out: distance 10 from the new model, largest kept 0"
    assert one_round(strategy, replies_of({node: HONEST[node] for node in (9, 4, 7)} | {5: [0, 0, 0]})) == (None, None)
    assert strategy.skipped == "'alma', the trusted reference, has no usable reply"
    assert one_round(strategy, replies_of({3: [0, 0, 0], **{n: HONEST[n] for n in (9, 4, 7)}}))[0] is not None
    with pytest.raises(PlanError, match="so none may be mixed before"):
        RobustStrategy("fltrust", ["nnm"], f=1, options={"reference": "alma"})


def test_one_participants_share_is_capped() -> None:
    np.testing.assert_allclose(capped(np.array([0.8, 0.1, 0.1]), 0.5), [0.5, 0.25, 0.25])
    np.testing.assert_allclose(capped(np.array([0.6, 0.3, 0.1]), 0.4), [0.4, 0.4, 0.2])
    np.testing.assert_allclose(capped(np.array([1.0, 0.0, 0.0]), 0.5), [0.5, 0.25, 0.25])
    np.testing.assert_allclose(capped(np.array([0.6, 0.4]), 0.3), [0.5, 0.5])
    np.testing.assert_allclose(capped(np.array([0.6, 0.4]), None), [0.6, 0.4])
    metrics = {3: {"num-examples": 98}, 9: {"num-examples": 1}, 4: {"num-examples": 1}}
    strategy = RobustStrategy("mean", weights="examples", options={"weight_cap": 0.5})
    one_round(strategy, replies_of({3: [4, 0, 0], 9: [0, 0, 0], 4: [0, 0, 0]}, metrics))
    assert strategy.weights == {3: 0.5, 9: 0.25, 4: 0.25}
    with pytest.raises(PlanError, match="weight_cap: it caps shares by examples"):
        RobustStrategy("mean", options={"weight_cap": 0.5})


def test_buckets_are_drawn_anew_each_round_and_alike_for_one_seed() -> None:
    models = {node: [node, 0, 0] for node in range(2, 10)}

    def middle(seed: int, number: int) -> float:
        strategy = RobustStrategy("median", ["bucketing"], f=1, options={"bucket_size": 2}, seed=seed)
        replies = replies_of(models)
        list(strategy.configure_train(number, from_numpy(REFERENCE), ConfigRecord(), GridView(None, list(models))))
        arrays, _ = strategy.aggregate_train(number, replies)
        assert arrays is not None
        return float(to_numpy(arrays)["w"][0])

    drawn = [middle(seed, number) for seed in range(3) for number in range(1, 5)]
    assert drawn == [middle(seed, number) for seed in range(3) for number in range(1, 5)] and len(set(drawn)) > 2
