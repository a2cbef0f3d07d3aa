"""The work that engines are compared on, as plans: a trivial task, and a small network on scikit-learn's digits."""

from pathlib import Path
from typing import Any, Literal, get_args

from astrofed.shared.plan import Plan, load_plan

Work = Literal["trivial", "digits-cnn"]
WORKS: tuple[Work, ...] = get_args(Work)
PLUGINS: dict[Work, Path] = {
    "trivial": Path(__file__).with_name("trivial.py"),
    "digits-cnn": Path(__file__).with_name("digits.py"),
}


def plan_for(work: Work, clients: int, rounds: int, *, engine: Literal["embedded", "ray"] = "embedded") -> Plan:
    """Return the plan of a work for so many clients; one thread, one client at a time, one local epoch."""
    common: dict[str, Any] = {
        "name": f"bench-{work}",
        "seed": 1,
        "rounds": rounds,
        "evaluate_every": rounds,  # only before the first round and after the last
        "strategy": {"name": "FedAvg"},
        "engine": {"name": engine, "workers": 1, "threads": 1},
    }
    if work == "trivial":
        return load_plan(
            {
                **common,
                "task": "trivial",
                "model": {"name": "vector", "parameters": 1000},
                "participants": [{"name": f"client-{i}", "data": f"add:{i}"} for i in range(clients)],
            }
        )
    return load_plan(
        {
            **common,
            "task": "digits",
            "model": "digits-cnn",
            "training": {"batch_size": 10, "optimizer": "sgd", "learning_rate": 0.05},
            "participants": [{"name": f"client-{i}", "data": f"digits:{i}/{clients}"} for i in range(clients)],
        }
    )
