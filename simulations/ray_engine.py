"""The Ray engine: Flower's own simulation runtime around the same server app and client app."""

import importlib.util
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from flwr.serverapp import ServerApp

from astrofed.shared.errors import UserMistake
from astrofed.simulations.sites import RemoteClientApp


class RayMissing(UserMistake):
    """The plan asks for the Ray engine, but Ray is not installed."""


def run_on_ray(
    server_app: ServerApp, run: Path, participants: Sequence[str], workers: int, plugins: Sequence[Path]
) -> None:
    """Run a server app with a node for each of the participants on Ray, at most `workers` at once.

    Raises:
        RayMissing: Ray is not installed.
        AstrofedError: what the server app raised.
    """
    if importlib.util.find_spec("ray") is None:
        raise RayMissing(
            "engine 'ray' needs Ray, which is not installed: pip install 'astrofed[sim]', or use 'embedded'"
        )
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    from flwr.simulation import run_simulation
    from flwr.supercore import telemetry

    telemetry.FLWR_TELEMETRY_ENABLED = "0"  # also where Flower was imported before astrofed could set the variable

    backend = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {
            "num_cpus": workers,
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
        },
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Flower and Ray warn about their own use of what is deprecated
        clients = RemoteClientApp(run, participants, plugins)
        run_simulation(server_app, clients, len(participants), backend_config=backend)  # type: ignore[arg-type]
