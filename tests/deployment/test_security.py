"""Who is not an enrolled site, and a site that does what it may not, gets nowhere; and the log says who tried."""

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, Message, Metadata, ObjectTree, PullObjectRequest
from flwr.proto.node_pb2 import Node

from astrofed.server.service.gateway import FLEET_PATHS
from astrofed.server.service.home import ServerHome, ServerSettings
from astrofed.server.service.sites import Sites
from astrofed.shared.keys import new_node_key, public_pem

FLEET = "/v1/fleet/"
COORDINATOR = Path(__file__).parents[2] / "docs" / "coordinator.md"


@pytest.fixture(scope="module")
def client(strict: Any) -> Iterator[httpx.Client]:
    with strict.client() as made:
        yield made


@pytest.fixture(scope="module")
def node_ids(strict: Any, client: httpx.Client) -> dict[str, int]:
    """The ids of the sites' nodes, which they get when they activate."""
    found = {}
    for name, key in strict.keys.items():
        body = ActivateNodeRequest(public_key=public_pem(key.public_key()).encode(), heartbeat_interval=30)
        answer = client.post(FLEET + "activate-node", content=body.SerializeToString(), headers=strict.signed(key))
        assert answer.status_code == 200, answer.text
        found[name] = ActivateNodeResponse.FromString(answer.content).node_id
    return found


def _pull(node: int) -> bytes:
    body: bytes = PullMessagesRequest(node=Node(node_id=node)).SerializeToString()
    return body


def _logged(strict: Any, *words: str) -> bool:
    lines = (strict.home / "logs" / "gateway.log").read_text() + (strict.home / "logs" / "link.log").read_text()
    return any(all(word in line for word in words) for line in lines.splitlines())


def test_an_enrolled_site_is_heard(strict: Any, client: httpx.Client, node_ids: dict[str, int]) -> None:
    answer = client.post(
        FLEET + "pull-messages", content=_pull(node_ids["tess"]), headers=strict.signed(strict.keys["tess"])
    )
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["astrofed-held"] == "1"


def test_without_a_key_nobody_gets_in(strict: Any, client: httpx.Client) -> None:
    assert client.post(FLEET + "pull-messages", content=b"").status_code == 401
    assert _logged(strict, "refused nobody from 127.0.0.1", "no signature")


def test_with_a_key_that_is_not_enrolled_nobody_gets_in(strict: Any, client: httpx.Client) -> None:
    key = new_node_key()
    body = ActivateNodeRequest(public_key=public_pem(key.public_key()).encode(), heartbeat_interval=30)
    answer = client.post(FLEET + "activate-node", content=body.SerializeToString(), headers=strict.signed(key))
    assert answer.status_code == 401
    assert _logged(strict, "refused key", "not enrolled")


def test_a_revoked_key_is_refused_at_once(strict: Any, client: httpx.Client, node_ids: dict[str, int]) -> None:
    def ask() -> httpx.Response:
        headers = strict.signed(strict.keys["keck"])
        return client.post(FLEET + "pull-messages", content=_pull(node_ids["keck"]), headers=headers)

    assert ask().status_code == 200
    Sites(strict.home / "sites").revoke("keck")
    assert ask().status_code == 401
    assert _logged(strict, "refused keck from 127.0.0.1", "key revoked")


def _speaking_for(other: int, own: int) -> dict[str, bytes]:
    message = Message(
        metadata=Metadata(run_id=1, message_id="ab" * 32, src_node_id=other, dst_node_id=1, message_type="train")
    )
    tree = ObjectTree(object_id="ab" * 32)
    stolen = PushMessagesRequest(node=Node(node_id=own), messages_list=[message], message_object_trees=[tree])
    return {
        "pull-messages": _pull(other),
        "send-node-heartbeat": SendNodeHeartbeatRequest(
            node=Node(node_id=other), heartbeat_interval=30
        ).SerializeToString(),
        "pull-object": PullObjectRequest(node=Node(node_id=other), run_id=1, object_id="ab" * 32).SerializeToString(),
        "confirm-message-received": ConfirmMessageReceivedRequest(
            node=Node(node_id=other), run_id=1, message_object_id="ab" * 32
        ).SerializeToString(),
        "push-messages": stolen.SerializeToString(),
    }


@pytest.mark.parametrize(
    "path", ["pull-messages", "send-node-heartbeat", "pull-object", "confirm-message-received", "push-messages"]
)
def test_nobody_speaks_for_another_node(strict: Any, client: httpx.Client, node_ids: dict[str, int], path: str) -> None:
    body = _speaking_for(node_ids["k2"], node_ids["tess"])[path]
    answer = client.post(FLEET + path, content=body, headers=strict.signed(strict.keys["tess"]))
    assert answer.status_code == 400
    assert _logged(strict, "refused tess", path, str(node_ids["k2"]))


def test_a_signature_by_another_key_is_refused(strict: Any, client: httpx.Client, node_ids: dict[str, int]) -> None:
    headers = strict.signed(strict.keys["k2"])
    headers["flwr-public-key"] = strict.signed(strict.keys["tess"])["flwr-public-key"]
    answer = client.post(FLEET + "pull-messages", content=_pull(node_ids["tess"]), headers=headers)
    assert answer.status_code == 401
    assert _logged(strict, "refused somebody as tess", "signature by another key")


def test_a_request_made_twice_is_refused(strict: Any, client: httpx.Client, node_ids: dict[str, int]) -> None:
    headers = strict.signed(strict.keys["tess"])
    ask = dict(content=_pull(node_ids["tess"]), headers=headers)
    assert client.post(FLEET + "pull-messages", **ask).status_code == 200  # type: ignore[arg-type]
    assert client.post(FLEET + "pull-messages", **ask).status_code == 401  # type: ignore[arg-type]
    assert _logged(strict, "refused somebody as tess", "replayed")


@pytest.mark.parametrize(("seconds", "words"), [(-3600.0, "behind"), (3600.0, "ahead of")])
def test_a_wrong_clock_is_refused_and_named(
    strict: Any, client: httpx.Client, node_ids: dict[str, int], seconds: float, words: str
) -> None:
    headers = strict.signed(strict.keys["tess"], seconds)
    answer = client.post(FLEET + "pull-messages", content=_pull(node_ids["tess"]), headers=headers)
    assert answer.status_code == 401
    assert f"{words} the server's" in answer.json()["detail"] and "clock" in answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/v1/runtime/push-messages",
        "/v1/fleet/register-node",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "//v1/control/start-run",
        "/v1/fleet/pull-messages/../../control/start-run",
        "/v1/fleet/pull-messages/",
        "/run/open",
        "/run/nodes",
        "/docs",
        "/metrics",
        "/healthz",
        "/",
    ],
)
def test_all_but_the_fleet_api_is_refused(strict: Any, path: str) -> None:
    key = strict.keys["tess"]
    headers = "".join(f"{name}: {value}\r\n" for name, value in strict.signed(key).items())
    request = f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: 0\r\n\r\n"
    answer = _raw(strict, request.encode())
    assert answer.split(b" ")[1] in (b"404", b"429")
    assert b"run_id" not in answer


def test_only_posts_are_forwarded(strict: Any, client: httpx.Client) -> None:
    assert client.get(FLEET + "pull-messages", headers=strict.signed(strict.keys["tess"])).status_code in (405, 429)


def test_malformed_bodies_and_requests_are_refused(strict: Any, client: httpx.Client, node_ids: dict[str, int]) -> None:
    for path in ("pull-messages", "push-messages", "push-object", "activate-node"):
        body = b"\xff\xff\xff\xff garbage"
        answer = client.post(FLEET + path, content=body, headers=strict.signed(strict.keys["k2"]))
        assert answer.status_code == 400, path
    headers = {**strict.signed(strict.keys["k2"]), "content-type": "application/json"}
    assert client.post(FLEET + "pull-messages", content=b"{}", headers=headers).status_code == 415
    assert _raw(strict, b"\x00\x01\x02 nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert _raw(strict, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000).startswith(b"HTTP/1.1 4")


def test_huge_bodies_are_refused(strict: Any, client: httpx.Client, node_ids: dict[str, int]) -> None:
    headers = strict.signed(strict.keys["k2"])
    claim = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"POST {FLEET}push-object HTTP/1.1\r\nHost: x\r\n{claim}Content-Length: 10000000000\r\n\r\n"
    assert _raw(strict, request.encode()).startswith(b"HTTP/1.1 413")

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(1_000_000)

    try:
        status = client.post(
            FLEET + "push-object", content=endless(), headers=strict.signed(strict.keys["k2"])
        ).status_code
    except httpx.WriteError:  # the connection is closed while we still send
        status = 413
    assert status == 413
    assert _logged(strict, "refused k2 from 127.0.0.1", "body too large")


def test_slow_requests_are_cut_off(strict: Any) -> None:
    began = time.monotonic()
    assert _raw(strict, b"POST /v1/fleet/pull-mess") == b""  # headers that never end
    claim = "".join(f"{name}: {value}\r\n" for name, value in strict.signed(strict.keys["k2"]).items())
    request = f"POST {FLEET}push-object HTTP/1.1\r\nHost: x\r\n{claim}Content-Length: 1000\r\n\r\nonly this"
    assert _raw(strict, request.encode()).startswith(b"HTTP/1.1 408")
    with socket.create_connection(("127.0.0.1", strict.port)) as silent:  # a handshake that never begins
        silent.settimeout(60)
        assert silent.recv(1) == b""
    assert time.monotonic() - began < 60
    assert _logged(strict, "closed a connection from 127.0.0.1")


def test_tls_before_1_3_and_no_tls_are_refused(strict: Any) -> None:
    context = ssl.create_default_context(cafile=str(strict.home / "authority" / "ca.crt"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(httpx.ConnectError), strict.client(context) as old:
        old.post("/")
    with pytest.raises(httpx.HTTPError):
        httpx.post(f"http://127.0.0.1:{strict.port}/", timeout=60)
    with pytest.raises(httpx.ConnectError), strict.client(ssl.create_default_context()) as stranger:
        stranger.post("/")  # whoever does not know the authority does not take the server for another


def test_a_scan_finds_what_the_docs_say_and_nothing_else(strict: Any) -> None:
    table = COORDINATOR.read_text().partition("## What is reachable")[2].partition("The gateway refuses")[0]
    documented = {setting: int(port) for port, setting in re.findall(r"(\d+) \(`(\w+)`\)", table)}
    fields = ServerSettings.model_fields
    assert documented == {name: fields[name].default for name in ("port", "admin_port")}
    settings = ServerHome(strict.home).settings()
    listening = _listening([strict.server.pid, *strict.children()])
    assert sorted(port for _, port in listening) == sorted(getattr(settings, name) for name in documented)
    for host, port in listening:
        spoken, said = _greeting(strict, host, port)
        assert spoken == ("TLSv1.3" if port == settings.port else "")
        assert said in ("404 Not Found", "429 Too Many Requests")  # all that who has no key is told
    assert re.search(r"the ten requests of Flower's Fleet API", table) and len(FLEET_PATHS) == 10
    assert (strict.home / "run").stat().st_mode & 0o077 == 0  # where the link's socket lies
    assert (strict.home / "link").stat().st_mode & 0o077 == 0


def test_health_readiness_and_metrics_are_on_loopback(strict: Any) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{strict.admin_port}") as admin:
        assert admin.get("/healthz").status_code == 200
        strict.until(lambda: admin.get("/readyz").status_code == 200, "the server is ready")
        strict.until(lambda: 'gateway_refused{reason="no signature"}' in admin.get("/metrics").text, "counts are there")
        text = admin.get("/metrics").text
        assert 'astrofed_process_up{process="link"} 1.0' in text
        assert "astrofed_sites_enrolled 2.0" in text or "astrofed_sites_enrolled 3.0" in text
        assert admin.get("/elsewhere").status_code == 404


def test_a_node_that_asks_too_often_is_slowed_down(strict: Any, client: httpx.Client, node_ids: dict[str, int]) -> None:
    def ask() -> int:
        headers = strict.signed(strict.keys["tess"])
        return client.post(FLEET + "get-fab", content=b"", headers=headers).status_code

    assert 429 in [ask() for _ in range(400)]
    assert _logged(strict, "refused tess", "too many requests from one node")
    strict.until(lambda: ask() != 429, "it may ask again later")


def test_a_stranger_who_tries_too_often_is_told_so_without_filling_the_log(strict: Any, client: httpx.Client) -> None:
    codes = [client.post(FLEET + "pull-messages", content=b"").status_code for _ in range(60)]
    assert codes[-1] == 429
    log: Callable[[], str] = (strict.home / "logs" / "gateway.log").read_text
    before = log().count("no signature")
    client.post(FLEET + "pull-messages", content=b"")
    assert log().count("no signature") == before


def _raw(strict: Any, request: bytes) -> bytes:
    """Send bytes over TLS; return the beginning of what comes back until the server closes or has answered."""
    context = ssl.create_default_context(cafile=str(strict.home / "authority" / "ca.crt"))
    with (
        socket.create_connection(("127.0.0.1", strict.port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        try:
            wrapped.sendall(request)
            return wrapped.recv(4096)
        except (ConnectionError, ssl.SSLError):
            return b""


def _greeting(strict: Any, host: str, port: int) -> tuple[str, str]:
    """Return the version of TLS that a port speaks, "" for none, and its answer to a request for "/"."""
    context = ssl.create_default_context(cafile=str(strict.home / "authority" / "ca.crt"))
    request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection((host, port), timeout=60) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=host) as wrapped:
                wrapped.sendall(request)
                return str(wrapped.version()), _status(wrapped)
        except ssl.SSLError:
            pass
    with socket.create_connection((host, port), timeout=60) as plain:
        plain.sendall(request)
        return "", _status(plain)


def _status(connection: socket.socket) -> str:
    return connection.recv(4096).partition(b"\r\n")[0].partition(b" ")[2].decode()


def _listening(pids: list[int]) -> set[tuple[str, int]]:
    """Return addresses and ports on which these processes listen by TCP."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = str(descriptor.readlink()) if descriptor.is_symlink() else ""
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for line in [
        *Path("/proc/net/tcp").read_text().splitlines()[1:],
        *Path("/proc/net/tcp6").read_text().splitlines()[1:],
    ]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            host, port = fields[1].split(":")
            address = socket.inet_ntoa(bytes.fromhex(host)[::-1]) if len(host) == 8 else host
            found.add((address, int(port, 16)))
    return found
