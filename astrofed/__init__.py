"""astrofed: federated learning for astrobiology.

    import astrofed
    result = astrofed.simulate("configs/quickstart.toml")
    result.metrics["loss"], result.baselines, result.report

Names are loaded when they are first used, so that importing the package costs nothing.
"""

import os
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Flower calls out by default; software that guards data must not. These are read when Flower is imported.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

# In a checkout the other packages lie beside this folder, not in it. Python started there finds this folder first.
_here = Path(__file__).parent
if not (_here / "shared").is_dir():
    __path__.append(str(_here.parent))

if TYPE_CHECKING:
    from astrofed.client.task import Task
    from astrofed.server.aggregation.base import Rule
    from astrofed.shared.models.base import Model
    from astrofed.shared.plan import Plan, load_plan
    from astrofed.shared.registry import register
    from astrofed.simulations.attack import Attack
    from astrofed.simulations.result import RunResult
    from astrofed.simulations.simulate import simulate, train

_HOMES = {
    "Attack": "astrofed.simulations.attack",
    "Model": "astrofed.shared.models.base",
    "Plan": "astrofed.shared.plan",
    "Rule": "astrofed.server.aggregation.base",
    "RunResult": "astrofed.simulations.result",
    "Task": "astrofed.client.task",
    "load_plan": "astrofed.shared.plan",
    "register": "astrofed.shared.registry",
    "simulate": "astrofed.simulations.simulate",
    "train": "astrofed.simulations.simulate",
}
__all__ = [
    "Attack", "Model", "Plan", "Rule", "RunResult", "Task", "__version__", "load_plan", "register", "simulate", "train",
]  # fmt: skip
__version__ = version("astrofed")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'astrofed' has no attribute {name!r}")
