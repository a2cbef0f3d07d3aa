"""What goes wrong around a server: a cut network, a full disk, and nodes with valid keys that are not ours.

Network and disk are faked by the kernel (`ip netns`, a small tmpfs), which takes root; without it those tests are
skipped. All of it happens to one server, and what is asserted is that every run ends, and what its record says.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from astrofed.server.record import read_record, verify_run
from astrofed.server.service.jobs import Jobs
from astrofed.server.service.overview import server_status
from astrofed.shared.record import Round

pytestmark = pytest.mark.slow
OWN = os.getpid()  # several tests may run on one machine
SPACE = f"af{OWN}"  # the network namespace, and the beginning of its two interfaces' names
SERVER, SITE = (f"10.231.{OWN % 251}.{4 * (OWN // 251 % 62) + place}" for place in (1, 2))
DISK_MB = 48
SUPERNODE = "flower-supernode"


def _tried(*words: str) -> str:
    """Run a command as root; return why it failed, "" if it didn't."""
    if os.geteuid() != 0 or shutil.which(words[0]) is None:
        return f"{words[0]} as root is not to be had here"
    done = subprocess.run(words, capture_output=True, text=True)
    return f"{' '.join(words)}: {done.stderr.strip()}" if done.returncode else ""


@pytest.fixture(scope="module")
def no_network() -> Iterator[str]:
    """A network namespace in which a site can live, joined to this one by a cable; why there is none, or ""."""
    commands = [
        f"ip netns add {SPACE}",
        f"ip link add {SPACE}-0 type veth peer name {SPACE}-1 netns {SPACE}",
        f"ip addr add {SERVER}/30 dev {SPACE}-0",
        f"ip link set {SPACE}-0 up",
        f"ip -n {SPACE} addr add {SITE}/30 dev {SPACE}-1",
        f"ip -n {SPACE} link set {SPACE}-1 up",
    ]
    yield next((why for command in commands if (why := _tried(*command.split()))), "")
    _tried("ip", "netns", "del", SPACE)
    _tried("ip", "link", "del", f"{SPACE}-0")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A small disk for the server, and why it is none, or ""."""
    folder = tmp_path_factory.mktemp("f")
    (folder / "server").mkdir()
    why = _tried("mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder / "server"))
    yield folder, why
    if not why:
        _tried("umount", str(folder / "server"))


@pytest.fixture(scope="module")
def deployment(server_in: Callable[..., Any], disk: tuple[Path, str], no_network: str) -> Iterator[Any]:
    host = {} if no_network else {"host": SERVER, "listen": "0.0.0.0"}
    made = server_in(disk[0], max_reply_mb=1, **host)
    made.enroll("tess", "k2", "keck")
    made.start()
    made.connect("tess", "k2")
    yield made
    made.close()


@pytest.fixture(scope="module")
def plan(planets: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    def made(name: str, *others: str, **changes: Any) -> dict[str, Any]:
        sites = [{"name": each, "data": "planets"} for each in ("tess", "k2", *others)]
        return {**planets, "name": name, "participants": sites, **changes}

    return made


def rounds(deployment: Any, run: str) -> list[Round]:
    return list(read_record(deployment.run_folder(run))[1])


def kept_out(entry: Round, site: str) -> str:
    return "; ".join(item.reason for item in entry.quarantined if item.participant == site)


def done(deployment: Any, run: str) -> list[Round]:
    state = deployment.finish(run)
    assert state.status == "done", state.reason + deployment.logs()
    verify_run(deployment.run_folder(run))
    return rounds(deployment, run)


def test_a_site_whose_network_is_cut_and_mended_is_out_and_in_again(
    deployment: Any, plan: Callable[..., dict[str, Any]], site_homes: Any, no_network: str
) -> None:
    if no_network:
        pytest.skip(no_network)
    site_homes.set_up("la_silla")
    site_homes.start("la_silla", "ip", "netns", "exec", SPACE)
    strategy = {"name": "FedAvg", "timeout_s": 5.0}
    deployment.submit(plan("cut", "la_silla", rounds=10_000, strategy=strategy))
    deployment.reach("cut", 1)

    def later(what: Callable[[Round], bool]) -> Callable[[], bool]:
        seen = len(rounds(deployment, "cut"))
        return lambda: any(what(entry) for entry in rounds(deployment, "cut")[seen:])

    assert _tried("ip", "link", "set", f"{SPACE}-0", "down") == ""
    deployment.until(later(lambda entry: entry.accepted == ("tess", "k2")), "the run goes on without the site")
    assert _tried("ip", "link", "set", f"{SPACE}-0", "up") == ""
    deployment.until(later(lambda entry: "la_silla" in entry.accepted), "the site is back")
    Jobs(deployment.home / "jobs").stop("cut")
    assert deployment.finish("cut").status == "stopped"
    entries = rounds(deployment, "cut")[1:]
    assert all(set(entry.accepted) >= {"tess", "k2"} for entry in entries)
    reasons = {kept_out(entry, "la_silla") for entry in entries if "la_silla" not in entry.accepted}
    assert reasons and all("no reply" in reason or "offline" in reason for reason in reasons), reasons


def test_a_node_that_sends_garbage_is_kept_out_and_the_record_says_why(
    deployment: Any, plan: Callable[..., dict[str, Any]]
) -> None:
    process = deployment.connect("keck", script="hostile_node.py")
    deployment.submit(plan("hostile", "keck", rounds=5))
    entries = done(deployment, "hostile")
    reasons = [kept_out(entry, "keck") for entry in entries]
    for number, words in ((1, "can't be read"), (2, "shape"), (3, "finite"), (4, "examples")):
        assert words in reasons[number], reasons
        assert entries[number].accepted == ("tess", "k2")
    assert entries[5].accepted == ("tess", "k2", "keck")  # an honest reply is used
    assert "refused: 413" in (deployment.folder / "nodes-keck.out").read_text()
    log = (deployment.home / "logs" / "link.log").read_text()
    assert "refused keck, /v1/fleet/push-object: ReplyTooLarge: a reply of more than" in log
    process.kill()


def test_flowers_own_supernode_with_a_valid_key_gives_nothing_that_is_used(
    deployment: Any, plan: Callable[..., dict[str, Any]]
) -> None:
    deployment.enroll("kepler")
    key = deployment.folder / "kepler.openssh"
    private = deployment.keys["kepler"].private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    key.write_bytes(private)
    key.chmod(0o600)
    authority, own = str(deployment.home / "authority" / "ca.crt"), ("--port", str(deployment.free_port()))
    script = next(Path(str(file.locate())) for file in distribution("flwr").files or [] if file.name == SUPERNODE)
    to = ("--superlink", deployment.address, "--root-certificates", authority)
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(deployment.folder)}
    path = f"{script.resolve().parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with (deployment.folder / "supernode.out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, str(script), *to, "--auth-supernode-private-key", str(key), *own],
            env={**os.environ, **quiet, "PATH": path},
            stdout=out,
            stderr=out,
            start_new_session=True,  # it starts others
        )
    try:
        deployment.until(lambda: _seen(deployment, "kepler"), "the node is connected")
        strategy = {"name": "FedAvg", "timeout_s": 15.0}
        deployment.submit(plan("stock", "kepler", strategy=strategy), wait_s=30.0, quorum=2)
        entries = done(deployment, "stock")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert all(entry.accepted == ("tess", "k2") for entry in entries[1:])
    start = read_record(deployment.run_folder("stock"))[0]
    assert start is not None and [item.participant for item in start.refused] == ["kepler"]
    assert "kepler" in (deployment.home / "jobs" / "stock" / "worker.log").read_text()


def _seen(deployment: Any, site: str) -> bool:
    return any(each.site == site and each.seen_s_ago is not None for each in server_status(deployment.home).sites)


def test_a_run_whose_disk_is_full_goes_on_when_there_is_room(
    deployment: Any,
    plan: Callable[..., dict[str, Any]],
    disk: tuple[Path, str],
    embedded: Callable[[dict[str, Any]], str],
) -> None:
    if disk[1]:
        pytest.skip(disk[1])
    given = plan("full", rounds=12)
    deployment.submit(given)
    deployment.reach("full", 2)
    filler = deployment.fill(deployment.home)
    signs = {"server.out": "can't be written", "nodes-tess.out": "answered 507"}
    deployment.until(
        lambda: any(sign in (deployment.folder / name).read_text() for name, sign in signs.items()), "it is noticed"
    )
    verify_run(deployment.run_folder("full"))
    assert not list(deployment.home.rglob("*.unfinished"))
    assert deployment.server.poll() is None
    before = deployment.state("full").round or 0
    filler.unlink()
    deployment.until(
        lambda: deployment.state("full").status == "failed" or (deployment.state("full").round or 0) > before,
        "the run has ended or goes on",
    )
    if deployment.state("full").status == "failed":
        Jobs(deployment.home / "jobs").resume("full")
        deployment.until(lambda: deployment.state("full").status != "failed", "it is taken up again")
    assert len(done(deployment, "full")) == 13
    model = deployment.run_folder("full") / "model.safetensors"
    assert hashlib.sha256(model.read_bytes()).hexdigest() == embedded(given)
