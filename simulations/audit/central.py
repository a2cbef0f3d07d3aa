"""Central privacy audited: the server's own strategy, whose participants are canaries (`server/strategies/central.py`).

A participant that is there sends an update ten clipping norms long along a coordinate of its own; one that is not sends
nothing. What the audit is given is the model after the last round, and epsilon is what the run's account says.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from astrofed.server.strategies.central import PrivateMean
from astrofed.shared.arrays import from_numpy, to_numpy
from astrofed.shared.plan import Plan, load_plan
from astrofed.simulations.audit.bound import bound
from astrofed.simulations.audit.canaries import LENGTH, coins
from astrofed.simulations.audit.cases import DELTA, Finding
from astrofed.simulations.embedded import EmbeddedGrid


@dataclass(frozen=True)
class CentralCase:
    """One way to average privately."""

    name: str
    epsilon: float  # that the plan asks for
    side: int = 64  # side² participants
    rounds: int = 1
    settings: Mapping[str, Any] | None = None  # of [central_privacy]

    @property
    def canaries(self) -> int:
        """How many participants there could be."""
        return self.side**2

    def plan(self) -> Plan:
        """Return the plan; of its task and model nothing is used."""
        privacy = {"epsilon": self.epsilon, "delta": DELTA, **(self.settings or {})}
        return load_plan(
            {
                "name": "audit",
                "rounds": self.rounds,
                "task": "planets",
                "model": "mlp",
                "strategy": {"name": "private-mean"},
                "central_privacy": privacy,
                "participants": [{"name": f"canary {number}", "data": "-"} for number in range(self.canaries)],
            }
        )

    def find(self, seed: int) -> Finding:
        """Average, guess, and return what was found; `seed` is of the canaries' coins alone."""
        present = coins(self.canaries, seed)
        strategy, model = PrivateMean(self.plan()), np.zeros(self.canaries, dtype=np.float32)
        grid = EmbeddedGrid(_participants(), self.canaries)
        there = {node for node, coin in zip(grid.get_node_ids(), present, strict=True) if coin}
        with tempfile.TemporaryDirectory(prefix="astrofed-audit-") as folder:
            strategy.opened(Path(folder), None)
            for number in range(1, self.rounds + 1):
                asked = strategy.configure_train(number, from_numpy({"w": model}), ConfigRecord(), grid)
                replies = grid.send_and_receive([each for each in asked if each.metadata.dst_node_id in there])
                arrays, _ = strategy.aggregate_train(number, replies)
                assert arrays is not None
                model = to_numpy(arrays)["w"]
        assert strategy.spent is not None
        shown = bound(model.astype(np.float64), present, DELTA)
        return Finding(self.name, self.canaries, strategy.spent.epsilon, shown)


CENTRAL_CASES = (
    CentralCase("central: all participants, one round", 4.0),
    CentralCase("central: a fifth of them, 10 rounds", 4.0, rounds=10, settings={"sampling_rate": 0.2}),
    CentralCase("central: two trees over 4 cohorts", 4.0, rounds=8, settings={"mechanism": "tree", "cohorts": 4}),
    CentralCase("central: adaptive clipping, 5 rounds", 4.0, rounds=5, settings={"clipping": "adaptive"}),
)


def _participants() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        changed = to_numpy(message.content.array_records["arrays"])["w"].copy()
        changed[int(context.node_config["partition-id"])] += LENGTH
        return Message(RecordDict({"arrays": from_numpy({"w": changed})}), reply_to=message)

    return app
