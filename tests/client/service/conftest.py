"""A real SuperLink of Flower's behind TLS with SuperNode authentication, in this process, and sites that joined it."""

import ipaddress
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from astrofed.client.policy import POLICY_FILE
from astrofed.client.service.home import KEY_FILE, WELCOME_FILE, Home, site_toml
from astrofed.shared import packing
from astrofed.shared.keys import fingerprint, new_node_key, private_pem, public_pem, write_key
from astrofed.shared.membership import Welcome
from astrofed.shared.plan import load_plan
from astrofed.shared.signed_plan import sign_plan
from astrofed.simulations.bundled import resolve_bundled

POLICY = """
modes = ["federated"]
tasks = ["planets"]
models = ["mlp"]
[[coordinators]]
name = "here"
public_key = "{key}"
[data]
privacy = "optional"
epsilon = 20.0
delta = 1e-4
metrics = ["*"]
statistics = ["*"]
digits = 17
min_units = 1
"""


class Link:
    """A SuperLink, driven through its own state as a server app's grid would be."""

    def __init__(self, folder: Path) -> None:
        os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
        import uvicorn
        from flwr.superlink.main import create_app

        self.certificate = _certificate(folder)
        app = create_app()
        app.state.enable_supernode_auth = True
        self.state = app.state.linkstate_factory.state()
        self.plan_key = Ed25519PrivateKey.generate()
        files = {"ssl_certfile": str(folder / "c.pem"), "ssl_keyfile": str(folder / "k.pem")}
        config = uvicorn.Config(app, "127.0.0.1", 0, log_config=None, access_log=False, ws="none", **files)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        _wait_until(lambda: self._server.started)
        self.address = f"127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def close(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(30)

    def register(self, public: str) -> int:
        node = self.state.create_node("coordinator", "coordinator", public.encode(), 0)
        assert self.state.activate_node(node, 30) and self.state.deactivate_node(
            node
        )  # who was never there gets nothing
        return int(node)

    def new_run(self) -> int:
        from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType

        run = self.state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, "coordinator", TaskType.SERVER_APP)
        (task,) = self.state.get_tasks(run_ids=[run])
        self.state.claim_task(task.task_id)
        assert self.state.activate_task(task.task_id)
        return int(run)

    def ask(self, run: int, node: int, kind: str, content: RecordDict, *, packed: bool = True, ttl: float = 600) -> str:
        """Put a message into the node's way; return its id."""
        from flwr.app.message import remove_content_from_message
        from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, 1, 1
        message = Message(packing.pack(content) if packed else content, node, kind, ttl=ttl)
        identifier = message.object_id
        message.metadata.__dict__["_message_id"] = identifier
        session = self.state.start_session(run)
        stored, missing = self.state.store_message_and_object_tree(
            remove_content_from_message(message), get_object_tree(message), session
        )
        assert stored
        objects = get_all_nested_objects(message)
        for name in missing:
            self.state.store_object(run, session, name, objects[name].deflate())
        return identifier

    def reply(self, run: int, question: str, timeout_s: float = 60) -> Message:
        """Wait for the reply to a message, and take it."""
        from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
        from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

        found: list[Message] = []

        def there() -> bool:
            found.extend(self.state.get_message_res({question}, run))
            return bool(found)

        _wait_until(there, timeout_s)
        (outside,) = found
        tree = self.state.object_store.get_object_tree(outside.metadata.message_id)
        names = [each.object_id for each in iterate_object_tree(tree)]
        _wait_until(lambda: all(self.state.get_object(run, name) for name in names), timeout_s)
        objects = {name: self.state.get_object(run, name) for name in names}
        reply = inflate_object_from_contents(outside.metadata.message_id, objects)
        assert isinstance(reply, Message)
        if reply.has_content() and packing.is_packed(reply.content):
            reply.content = packing.unpack(reply.content)
        return reply

    def answered(self) -> int:
        """How many replies the server holds."""
        return int(self.state.num_message_res())

    def signed(self, text: str, run: str = "run-1", **changes: Any) -> ConfigRecord:
        """Return a "config" record that carries a plan, signed for the next hour."""
        now = int(time.time())
        return ConfigRecord({**sign_plan(text, run, now, now + 3600, self.plan_key), **changes})


class Joined:
    """A site's home that has joined a link, and the id of its node there."""

    def __init__(self, folder: Path, name: str, link: Link, policy: str = POLICY, **limits: float) -> None:
        key, public = new_node_key(), link.plan_key.public_key()
        folder.mkdir()
        (folder / "logs").mkdir()
        write_key(folder / KEY_FILE, key)
        text = site_toml(name, "somebody", {"planets": str(resolve_bundled(f"planets/{name}"))})
        text = text.split("[limits]")[0] + "[limits]\n" + "".join(f"{k} = {v}\n" for k, v in limits.items())
        (folder / "site.toml").write_text(text)
        raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
        (folder / POLICY_FILE).write_text(policy.format(key=raw))
        welcome = Welcome(
            coordinator="here",
            address=link.address,
            ca_certificate=link.certificate,
            plan_key=public_pem(public),
            site=name,
            node_fingerprint=fingerprint(key.public_key()),
            federations=("all",),
            time=datetime.now(UTC),
        )
        (folder / WELCOME_FILE).write_text(welcome.to_json())
        self.home, self.key = Home.open(folder), key
        self.node = link.register(public_pem(key.public_key()))


def _wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def _certificate(folder: Path) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")]), datetime.now(UTC)
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "k.pem").write_bytes(private_pem(key))
    (folder / "c.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    return certificate.public_bytes(Encoding.PEM).decode()


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    made = Link(tmp_path_factory.mktemp("link"))
    yield made
    made.close()


@pytest.fixture
def join(tmp_path: Path, link: Link) -> Callable[..., Joined]:
    def make(name: str = "k2", policy: str = POLICY, **limits: float) -> Joined:
        return Joined(tmp_path / name, name, link, policy, **limits)

    return make


@pytest.fixture
def plan(small: dict[str, Any]) -> str:
    """A plan that the sites of these tests take part in, as JSON."""
    participants = [{"name": each["name"], "data": "planets"} for each in small["participants"]]
    return load_plan({**small, "participants": participants}).to_json()


@pytest.fixture
def private_plan(plan: str) -> str:
    """The same plan, with differential privacy."""
    data = json.loads(plan)
    data["privacy"] = {"epsilon": 8.0, "delta": 1e-5, "unit": "planet"}
    return load_plan(data).to_json()


def model_record(plan: str) -> ArrayRecord:
    from astrofed.shared.arrays import from_state_dict
    from astrofed.shared.models.base import build_model
    from astrofed.shared.plan import plan_from_json

    return from_state_dict(build_model(plan_from_json(plan)).state_dict())


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Wait for a condition, for a minute at most."""
    return _wait_until


@pytest.fixture
def model(plan: str) -> ArrayRecord:
    """The plan's initial model."""
    return model_record(plan)


@pytest.fixture(scope="session")
def certificate_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate for this machine and its key: c.pem, k.pem."""
    folder = tmp_path_factory.mktemp("certificate")
    _certificate(folder)
    return folder


@pytest.fixture(scope="session")
def certificate(certificate_files: Path) -> str:
    """That certificate, in PEM."""
    return (certificate_files / "c.pem").read_text()


@pytest.fixture(scope="session")
def other_certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The certificate of somebody else who calls himself the same."""
    return _certificate(tmp_path_factory.mktemp("other"))
