"""What the tests of the client share: a coordinator that may send a site anything, and the bytes that come back."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto

from astrofed.client.app import build_client_app
from astrofed.client.data.table import read_table
from astrofed.client.policy import Policy
from astrofed.client.site import Site
from astrofed.client.tasks.planets_catalogue import read_catalogue
from astrofed.shared.arrays import from_state_dict
from astrofed.shared.models.base import build_model
from astrofed.shared.models.planet_layout import FEATURES, TARGETS
from astrofed.shared.plan import Plan, load_plan
from astrofed.simulations.bundled import resolve_bundled
from astrofed.simulations.embedded import EmbeddedGrid

DATA = resolve_bundled("planets/k2")
Send = Callable[..., Message]


@pytest.fixture
def asked() -> Callable[..., Plan]:
    """A plan for K2's planets that `allowing` lets in; keys can be changed."""

    def make(**changes: Any) -> Plan:
        base: dict[str, Any] = {
            "name": "trial",
            "seed": 2,
            "rounds": 2,
            "task": "planets",
            "model": {"name": "mlp", "hidden": [8], "inputs": FEATURES, "outputs": len(TARGETS)},
            "training": {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 128},
            "privacy": {"unit": "planet", "epsilon": 4.0, "delta": 1e-5, "clipping_norm": 2.0},
            "engine": {"threads": 1},
            "participants": [{"name": "K2", "data": str(DATA)}],
        }
        return load_plan({key: value for key, value in {**base, **changes}.items() if value is not None})

    return make


@pytest.fixture
def allowing() -> Callable[..., Policy]:
    """A policy that lets `asked` in; its rules for data can be changed, and other keys by `top`."""

    def make(top: dict[str, Any] | None = None, **data: Any) -> Policy:
        rules = {"epsilon": 6.0, "delta": 1e-5, "metrics": ["loss", "rmse/*"], "digits": 2, **data}
        names = {"modes": ["federated"], "tasks": ["planets"], "models": ["mlp"]}
        return Policy.parse({**names, "data": rules, **(top or {})}, Path("policy.toml"))

    return make


@pytest.fixture
def place(tmp_path: Path, allowing: Callable[..., Policy]) -> Callable[..., Site]:
    """K2 as a site with a home and a policy; fields can be changed."""

    def make(**changes: Any) -> Site:
        return Site(**{"name": "K2", "data": DATA, "home": tmp_path / "home", "policy": allowing(), **changes})

    return make


@pytest.fixture
def send() -> Send:
    """Send a site a message of a kind, as any coordinator could, and return the reply; one app for each site."""
    grids: dict[Site, EmbeddedGrid] = {}

    def ask(site: Site, kind: str, plan: Plan, weights_of: Plan | None = None, /, **settings: Any) -> Message:
        grid = grids.setdefault(site, EmbeddedGrid(build_client_app(lambda _context, _plan: site), 1))
        (node,) = grid.get_node_ids()
        records = RecordDict({"config": ConfigRecord({"plan": plan.to_json(), **settings})})
        if not kind.startswith("query"):
            records["arrays"] = from_state_dict(build_model(weights_of or plan).state_dict())
        message = Message(content=records, dst_node_id=node, message_type=kind)
        (reply,) = grid.send_and_receive([message])
        return reply

    return ask


@pytest.fixture(scope="session")
def secrets() -> frozenset[bytes]:
    """K2's planets and stars by name, and their numbers of some digits, raw and as trained on, as text and bytes."""
    table, catalogue = read_table(DATA), read_catalogue(DATA, 0.2)
    numbers = [values for values in table.columns.values() if values.dtype.kind == "f"]
    for planets in (catalogue.training, catalogue.held_out):
        numbers += [planets.features.numpy(), planets.targets.numpy(), planets.zero_albedo.numpy()]
    found = {name.encode() for column in ("pl_name", "hostname") for name in table.text(column).tolist()}
    for value in {value for column in numbers for value in column.reshape(-1).tolist() if np.isfinite(value)}:
        if len(f"{value:.7g}") > 6:
            found |= {struct.pack("<d", value), struct.pack("<f", value), f"{value:.7g}".encode()}
    assert len(found) > 5000
    return frozenset(found)


@pytest.fixture
def leaks(secrets: frozenset[bytes]) -> Callable[[Message], list[bytes]]:
    """Which of the site's data stand in a reply as it goes over a wire."""

    def look(reply: Message) -> list[bytes]:
        data = bytes(message_to_proto(reply).SerializeToString())
        return [secret for secret in secrets if secret in data]

    return look
