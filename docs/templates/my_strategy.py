"""A strategy of your own: any Flower strategy. Test it in a plan that names it, see docs/plugins.md."""

from collections.abc import Iterable
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg


class HalfStep(FedAvg):
    """Moves only a part of the way from the old model to the average."""

    def __init__(self, *, fraction: float = 0.5) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.fraction = fraction
        self.before: dict[str, Any] = {}  # numpy arrays: in each checkpoint, so that a resumed run goes on exactly

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Keep the model that is sent."""
        self.before = {name: array.numpy() for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the old model moved by `fraction` of the average update."""
        average, metrics = super().aggregate_train(server_round, replies)
        if average is None:
            return None, metrics
        return ArrayRecord(
            {name: Array(self._between(name, array.numpy())) for name, array in average.items()}
        ), metrics

    def _between(self, name: str, new: Any) -> Any:
        old = self.before[name]
        return (old + self.fraction * (new - old)).astype(old.dtype)
