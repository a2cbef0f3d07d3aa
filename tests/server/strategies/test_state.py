"""Stopping and resuming: a new strategy with the old one's state goes on as the old one would have, bit for bit."""

import gc
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, QFedAvg, Strategy
from numpy.typing import NDArray

from astrofed.server.nodes import GridView
from astrofed.server.strategies.state import BadStrategyState, restore_state, strategy_state
from astrofed.shared.arrays import from_numpy, to_numpy

Arrays = dict[str, NDArray[Any]]
NODES = (4, 5, 6)
STRATEGIES: dict[str, Any] = {
    "FedAvg": FedAvg,
    "FedAvgM": lambda: FedAvgM(server_momentum=0.9, server_learning_rate=0.7),
    "FedAdam": lambda: FedAdam(eta=0.02, beta_1=0.9, beta_2=0.99),
    "FedYogi": lambda: FedYogi(eta=0.02, beta_1=0.9, beta_2=0.99),
    "FedAdagrad": lambda: FedAdagrad(eta=0.02),
    "QFedAvg": lambda: QFedAvg(client_learning_rate=0.1, train_loss_key="loss"),
}


def one_round(strategy: Strategy, number: int, model: Arrays) -> Arrays:
    """Each node pulls the model towards its own target, with noise of the round."""
    orders = strategy.configure_train(number, from_numpy(model), ConfigRecord(), GridView(None, NODES))
    replies = []
    for order in sorted(orders, key=lambda message: message.metadata.dst_node_id):
        node = order.metadata.dst_node_id
        rng = np.random.default_rng([number, node])
        arrays = {
            name: (old + 0.3 * (node - old) + rng.normal(size=old.shape)).astype(old.dtype)
            for name, old in model.items()
        }
        metrics = MetricRecord({"num-examples": 10 * node, "loss": 1.0 / number + node})
        replies.append(Message(RecordDict({"arrays": from_numpy(arrays), "metrics": metrics}), reply_to=order))
    arrays_record, _ = strategy.aggregate_train(number, replies)
    assert arrays_record is not None
    return {name: array.astype(model[name].dtype) for name, array in to_numpy(arrays_record).items()}


def stopped_and_resumed(strategy: Strategy, fresh: Strategy) -> Strategy:
    """Carry the state over as a checkpoint does: arrays as arrays, the rest through JSON."""
    arrays, scalars = strategy_state(strategy)
    kept = {name: array.copy() for name, array in arrays.items()}
    restore_state(fresh, kept, json.loads(json.dumps(scalars)))
    return fresh


@pytest.fixture
def little_garbage() -> Iterator[None]:
    """QFedAvg collects garbage for each reply; what other tests left need not be searched each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("little_garbage")
@pytest.mark.parametrize("name", STRATEGIES)
def test_two_rounds_a_stop_and_two_rounds_are_four_rounds(name: str) -> None:
    initial: Arrays = {"w": np.ones((3, 2), np.float32), "b": np.array(0.5, np.float32)}
    straight, strategy = initial, STRATEGIES[name]()
    for number in range(1, 5):
        straight = one_round(strategy, number, straight)
    model, strategy = initial, STRATEGIES[name]()
    for number in range(1, 3):
        model = one_round(strategy, number, model)
    strategy = stopped_and_resumed(strategy, STRATEGIES[name]())
    for number in range(3, 5):
        model = one_round(strategy, number, model)
    assert all((model[key] == straight[key]).all() for key in initial)


@pytest.mark.parametrize("name", ["FedAvgM", "FedAdam", "FedYogi", "FedAdagrad"])
def test_without_the_state_they_would_not_be(name: str) -> None:
    """What the test above guards: a new strategy without its moments goes elsewhere."""
    model: Arrays = {"w": np.ones(4, np.float32)}
    strategy = STRATEGIES[name]()
    for number in range(1, 3):
        model = one_round(strategy, number, model)
    straight, fresh = one_round(strategy, 3, model), one_round(STRATEGIES[name](), 3, model)
    assert (straight["w"] != fresh["w"]).any()


class Holder(FedAvg):
    """A strategy with attributes of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Any = None
        self.history: Any = None
        self.wire: Any = None
        self.record: Any = None
        self.helper: Any = lambda: None


def test_nested_values_come_back_with_their_types() -> None:
    one, fresh = Holder(), Holder()
    one.counts = {4: 2, 5: [1.5, None, "x", True], "pair": (np.float32(1.5), 2)}
    one.history = [np.arange(3), {"a": np.ones((2, 2), np.float16)}, []]
    one.wire = Array(np.arange(4.0))
    one.record = ArrayRecord({"w": Array(np.eye(2))})
    fresh_helper = fresh.helper
    stopped_and_resumed(one, fresh)
    assert fresh.counts == one.counts and isinstance(fresh.counts["pair"], tuple) and 4 in fresh.counts
    assert (
        fresh.history[0].tolist() == [0, 1, 2] and fresh.history[1]["a"].dtype == np.float16 and fresh.history[2] == []
    )
    assert fresh.wire.numpy().tolist() == [0, 1, 2, 3] and fresh.record["w"].numpy().tolist() == [[1, 0], [0, 1]]
    assert fresh.helper is fresh_helper, "what is neither array nor plain data is left alone"


def test_a_value_that_holds_something_else_leaves_no_arrays_behind() -> None:
    strategy = Holder()
    strategy.history = [np.ones(3), object()]
    arrays, scalars = strategy_state(strategy)
    assert arrays == {} and "history" not in scalars


class Speaking(FedAvg):
    """A strategy that keeps its state itself."""

    def __init__(self) -> None:
        super().__init__()
        self.moment: Any = np.zeros(2)

    def state_dict(self) -> Any:
        return {"moment": self.moment}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        self.moment = 2 * state["moment"]


def test_a_strategy_that_speaks_for_itself_is_listened_to() -> None:
    strategy = Speaking()
    strategy.moment = np.array([1.0, 2.0])
    arrays, scalars = strategy_state(strategy)
    assert list(arrays) == ["moment"] and scalars == {}
    resumed: Any = stopped_and_resumed(strategy, Speaking())
    assert resumed.moment.tolist() == [2.0, 4.0]
    strategy.state_dict = lambda: {"moment": [1, 2]}  # type: ignore[method-assign]
    with pytest.raises(BadStrategyState, match="state_dict must return a dict of numpy arrays"):
        strategy_state(strategy)
