"""What many tests share: a small federation on real data."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# The same examples on every machine, however busy it is: a slow core is no failure of the code.
settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")


@pytest.fixture
def small() -> dict[str, Any]:
    """A plan of four real observatories without differential privacy; a round takes a fraction of a second."""
    return {
        "name": "small",
        "seed": 3,
        "rounds": 4,
        "task": {"name": "planets"},
        "model": {"name": "mlp"},
        "training": {"batch_size": 32, "learning_rate": 0.003, "optimizer": "adam"},
        "strategy": {"name": "FedAvg"},
        "engine": {"threads": 1},
        "participants": [
            {"name": name, "data": f"bundled:planets/{name}"} for name in ("tess", "k2", "la_silla", "keck")
        ],
    }
