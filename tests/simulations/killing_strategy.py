"""A user's own strategy for the tests of resuming: kills its process, as `kill -9` would, in one hook of one round."""

import os
import signal
from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam


class Killing(FedAdam):
    """FedAdam (which has a state of its own) that ends its process where ASTROFED_TEST_KILL says: hook:round."""

    def __init__(self, *, eta: float = 0.01) -> None:
        super().__init__(eta=eta, min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)

    def _maybe_die(self, hook: str, number: int) -> None:
        if os.environ.get("ASTROFED_TEST_KILL") == f"{hook}:{number}":
            os.kill(os.getpid(), signal.SIGKILL)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._maybe_die("configure_train", server_round)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        result = super().aggregate_train(server_round, replies)
        self._maybe_die("aggregate_train", server_round)
        return result

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        self._maybe_die("aggregate_evaluate", server_round)
        return super().aggregate_evaluate(server_round, replies)
