"""Flower's own deployment on loopback: SuperLink and four SuperNodes over TLS with authentication, as in its guide.

The app adds a number to every weight, and the server notes when each round begins. Telemetry, the check for updates
and the installation of dependencies are off, which only helps it.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from astrofed.shared.keys import new_node_key
from astrofed.simulations.bench.free_port import free_port

PATIENCE_S = 300.0
_PROJECT = """
[project]
name = "stock"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "stock.server:app"
clientapp = "stock.client:app"
[tool.flwr.app.config]
parameters = 1000
rounds = 3
out = ""
"""
_SERVER = """
import json, time
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()
times = []

class Timed(FedAvg):
    def configure_train(self, *args, **kwargs):
        times.append(time.time())
        return super().configure_train(*args, **kwargs)

@app.main()
def main(grid, context):
    config = context.run_config
    strategy = Timed(fraction_evaluate=0.0, min_available_nodes={sites}, min_train_nodes={sites})
    model = ArrayRecord({{"weights": Array(np.zeros(config["parameters"], dtype=np.float32))}})
    result = strategy.start(grid, model, num_rounds=config["rounds"])
    times.append(time.time())
    weights = result.arrays["weights"].numpy()
    with open(config["out"] + ".part", "w") as file:
        json.dump({{"times": times, "weight": float(weights[0])}}, file)
    import os
    os.replace(config["out"] + ".part", config["out"])
"""
_CLIENT = """
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    weights = message.content["arrays"]["weights"].numpy()
    weights = weights + np.linspace(1, 2, weights.size, dtype=np.float32)  # no two pieces alike, or they are sent once
    records = {"arrays": ArrayRecord({"weights": Array(weights)}), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(records), reply_to=message)
"""


class StockFailed(RuntimeError):
    """Flower's deployment did not do a run."""


class Stock:
    """A SuperLink and its SuperNodes that are up; `rounds` runs the app on them."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, environment

    def rounds(self, parameters: int, rounds: int) -> list[float]:
        """Return the seconds of each round but the first.

        Raises:
            StockFailed: the run did not end in time, or not with the model that it should.
        """
        out = self._folder / f"{parameters}.json"
        config = f'parameters={parameters} rounds={rounds + 1} out="{out}"'
        self.command("run", str(self._folder / "app"), "bench", "--run-config", config)
        deadline = time.monotonic() + PATIENCE_S
        while not out.exists():
            if time.monotonic() > deadline:
                raise StockFailed(f"no end within {PATIENCE_S:g} s")
            time.sleep(0.1)
        found = json.loads(out.read_text())
        if found["weight"] != rounds + 1:
            raise StockFailed(f"the model is {found['weight']} after {rounds + 1} rounds")
        return [after - before for before, after in zip(found["times"][1:], found["times"][2:], strict=False)]

    def command(self, *arguments: str) -> None:
        """Run Flower's command line.

        Raises:
            StockFailed: it failed.
        """
        done = subprocess.run(
            [_script("flwr"), *arguments], env=self._environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
        if done.returncode:
            raise StockFailed(f"flwr {arguments[0]}: {(done.stderr or done.stdout).strip()[-400:]}")


@contextmanager
def stock(folder: Path, certificate: Path, key: Path, authority: Path, sites: int) -> Iterator[Stock]:
    """Set Flower's deployment up below a folder, and take it down again."""
    app, home, port = folder / "app", folder / "flwr", free_port()
    (app / "stock").mkdir(parents=True)
    home.mkdir()
    (app / "pyproject.toml").write_text(_PROJECT)
    (app / "stock" / "__init__.py").touch()
    (app / "stock" / "server.py").write_text(_SERVER.format(sites=sites))
    (app / "stock" / "client.py").write_text(_CLIENT)
    connection = f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "127.0.0.1:{port}"\n'
    (home / "config.toml").write_text(f'{connection}root-certificates = "{authority}"\n')
    off = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    path = f"{Path(_script('flower-superexec')).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, **off, "FLWR_HOME": str(home), "PATH": path}
    tls = ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(key), "--ssl-ca-certfile", str(authority)]
    processes: list[subprocess.Popen[bytes]] = []

    def start(name: str, *command: str) -> None:
        with (folder / f"{name}.out").open("wb") as out:
            processes.append(
                subprocess.Popen(
                    [_script(command[0]), *command[1:]],
                    stdout=out,
                    stderr=out,
                    stdin=subprocess.DEVNULL,
                    env=environment,
                    start_new_session=True,
                )
            )

    try:
        link = ["--host", "127.0.0.1", "--port", str(port), "--enable-supernode-auth", *tls]
        start("superlink", "flower-superlink", *link, "--disable-runtime-dependency-installation")
        made = Stock(folder, environment)
        for number in range(sites):
            node, public = new_node_key(), folder / f"node-{number}.pub"
            private = folder / f"node-{number}.key"
            private.write_bytes(node.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
            private.chmod(0o600)
            public.write_bytes(node.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
            _until_it_works(made, "supernode", "register", str(public), "bench")
            address = ["--superlink", f"127.0.0.1:{port}", "--root-certificates", str(authority)]
            keys = ["--auth-supernode-private-key", str(private), "--port", str(free_port()), "--insecure"]
            start(f"node-{number}", "flower-supernode", *address, *keys[:-1])
        yield made
    finally:
        _end(processes)


def _until_it_works(made: Stock, *arguments: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            made.command(*arguments)
            return
        except StockFailed:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End processes with all that they started."""
    for process in reversed(processes):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _script(name: str) -> str:
    """Return the path of one of Flower's commands.

    Raises:
        StockFailed: it was not installed with it.
    """
    for file in distribution("flwr").files or []:
        if file.name == name:
            return str(Path(str(file.locate())).resolve())
    raise StockFailed(f"the command {name} was not installed with Flower")
