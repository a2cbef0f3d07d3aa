"""Central privacy audited: the server's own strategy, whose participants are canaries (`server/strategies/central.py`).

A participant that is there sends an update ten clipping norms long along a coordinate of its own; one that is not sends
nothing. What the audit is given is the model after the last round, or, where participants take turns, after each round
(`turns.py`). Epsilon is what the run's account says.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from astrofed.server.strategies.central import PrivateMean
from astrofed.shared.arrays import from_numpy, to_numpy
from astrofed.shared.plan import Plan, load_plan
from astrofed.simulations.audit import turns
from astrofed.simulations.audit.bound import bound
from astrofed.simulations.audit.canaries import LENGTH, coins
from astrofed.simulations.audit.cases import DELTA, Epsilon, Finding
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

    @property
    def cohorts(self) -> int | None:
        """How many groups of participants take turns; None where participants are sampled."""
        found: int | None = (self.settings or {}).get("cohorts")
        return found

    def find(self, seed: int) -> Finding:
        """Average, guess, and return what was found; `seed` is of the canaries' coins alone."""
        present = coins(self.canaries, seed)
        models, accounted = self._released(present)
        if self.cohorts is None:
            scores = models[-1]
        else:
            sums = np.diff(models, axis=0, prepend=0.0) * (self.canaries / self.cohorts)
            scores = turns.scores(sums[:, : self.canaries], sums[:, self.canaries :], self.cohorts)
        return Finding(self.name, self.canaries, accounted, bound(scores, present, DELTA))

    def _released(self, present: NDArray[np.bool_]) -> tuple[NDArray[np.float64], Epsilon]:
        """Return [round, weight] the model after each round, and what the account says of them all."""
        idle = turns.IDLE * self.rounds if self.cohorts else 0
        strategy, model = PrivateMean(self.plan()), np.zeros(self.canaries + idle, dtype=np.float32)
        models = np.zeros((self.rounds, len(model)))
        grid = EmbeddedGrid(_participants(self.cohorts), self.canaries)
        there = {node for node, coin in zip(grid.get_node_ids(), present, strict=True) if coin}
        with tempfile.TemporaryDirectory(prefix="astrofed-audit-") as folder:
            strategy.opened(Path(folder), None)
            for number in range(1, self.rounds + 1):
                asked = strategy.configure_train(number, from_numpy({"w": model}), ConfigRecord(), grid)
                replies = grid.send_and_receive([each for each in asked if each.metadata.dst_node_id in there])
                arrays, _ = strategy.aggregate_train(number, replies)
                assert arrays is not None
                model = models[number - 1] = to_numpy(arrays)["w"]
        assert strategy.spent is not None
        return models, strategy.spent.epsilon


CENTRAL_CASES = (
    CentralCase("central: all participants, one round", 4.0),
    CentralCase("central: a fifth of them, 10 rounds", 4.0, rounds=10, settings={"sampling_rate": 0.2}),
    CentralCase("central: two trees over 4 cohorts", 4.0, rounds=8, settings={"mechanism": "tree", "cohorts": 4}),
    CentralCase("central: a tree over 16 cohorts", 8.0, rounds=16, settings={"mechanism": "tree", "cohorts": 16}),
    CentralCase("central: adaptive clipping, 5 rounds", 4.0, rounds=5, settings={"clipping": "adaptive"}),
)


def _participants(cohorts: int | None) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        changed = to_numpy(message.content.array_records["arrays"])["w"].copy()
        number = int(str(message.content.config_records["config"]["server-round"]))
        own = int(str(context.node_config["partition-id"]))
        changed[own] += LENGTH if cohorts is None else LENGTH * turns.direction(number, cohorts)
        return Message(RecordDict({"arrays": from_numpy({"w": changed})}), reply_to=message)

    return app
