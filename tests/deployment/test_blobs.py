"""Large arrays on their way: unchanged, between those alone whom they concern, and on from where they were cut off."""

import errno
import os
import ssl
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from astrofed.client.service import blob_transfer
from astrofed.client.service.blob_transfer import BlobTransfer
from astrofed.client.service.fleet import Fleet
from astrofed.client.service.messages import blob_of, envelope, error_instead, open_question, seal_reply
from astrofed.client.service.refusals import BadAnswer, NotAdmitted, TooLarge, Unreachable
from astrofed.client.service.sealed import Sealed
from astrofed.server.service.link_grid import LinkGrid
from astrofed.server.service.sites import Sites
from astrofed.shared import records
from astrofed.shared.arrays import from_numpy, to_numpy
from astrofed.shared.blobs import STEP, Blob, Blobs, WrongBlob
from astrofed.shared.files import CannotWrite
from astrofed.shared.packing import Form

VALUES = np.random.default_rng(1).random(5 * 2**20 // 8)
LONG = np.zeros(32 * 2**20 // 8)  # more than the kernel holds of a connection
LARGEST_MB = 8


class Site:
    """A site's connection, and the folder of its blobs."""

    def __init__(self, deployment: Any, name: str) -> None:
        self.blobs = Blobs(deployment.folder / f"{name}-blobs")
        ca = (deployment.home / "authority" / "ca.crt").read_text()
        self.fleet = Fleet(f"127.0.0.1:{deployment.port}", ca, deployment.keys[name], 10**9, self.blobs)
        self.fleet.connect(None)
        context = ssl.create_default_context(cadata=ca)
        self.transfer = BlobTransfer(self.fleet.address, context, self.fleet._signed, self.blobs)

    def claim(self) -> Sealed:
        """Take the question that waits."""
        claim, _ = self.fleet.pull(5.0)
        assert claim is not None
        return claim

    def reply(self, claim: Sealed, values: Any) -> tuple[Sealed, Blob]:
        """Make the reply with these values to a question."""
        message, _, form = open_question(self.fleet.fetch(claim), self.fleet.node, self.blobs)
        assert form is Form.WITH_BLOBS
        content = {"arrays": from_numpy({"w": values}), "metrics": MetricRecord({"num-examples": 1})}
        reply = seal_reply(records.reply(message, RecordDict(content)), form, self.blobs)
        blob = blob_of(reply)
        assert blob is not None
        return reply, blob


@pytest.fixture(scope="module")
def running(small_replies: Any) -> Any:
    return small_replies


@pytest.fixture(scope="module")
def sites(running: Any) -> Iterator[dict[str, Site]]:
    made = {name: Site(running, name) for name in running.keys}
    yield made
    for site in made.values():
        site.fleet.close()


@pytest.fixture
def grid(running: Any, sites: dict[str, Site]) -> Iterator[LinkGrid]:
    """A run of which only one site is a member."""
    fingerprint = Sites(running.home / "sites").all()["tess"].fingerprint
    made = LinkGrid(
        running.home / "run" / "link.sock", "run", {"tess": fingerprint}, lambda _: {}, running.home / "link" / "blobs"
    )
    yield made
    made.close()
    assert list((running.home / "link" / "blobs").iterdir()) == []  # nothing of a run outlasts it


class OnItsWay:
    """`os`, as a site sees it that sends a blob: one bit can change there, or something happen, once, before a byte."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self._change: int | None = None
        self._calls: dict[int, Callable[[], None]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def change_at(self, at: int | None) -> None:
        self._change = at

    def call_at(self, at: int, what: Callable[[], None]) -> None:
        self._calls[at] = what

    def pread(self, file: int, count: int, at: int) -> bytes:
        self.starts.append(at)
        if at in self._calls:
            self._calls.pop(at)()
        data = os.pread(file, count, at)
        return bytes([data[0] ^ 1]) + data[1:] if at == self._change else data


@pytest.fixture
def on_its_way(monkeypatch: pytest.MonkeyPatch) -> OnItsWay:
    made = OnItsWay()
    monkeypatch.setattr(blob_transfer, "os", made)
    return made


def some_has_come(server: Path, blob: Blob) -> bool:
    return any(each.stat().st_size for each in server.glob(f"{blob.id}.*"))


def pushed(site: Site, reply: Sealed) -> bool:
    """Send a reply to a server that may not be there yet."""
    try:
        return site.fleet.push(reply)
    except Unreachable:
        return False


def fetched(site: Site, claim: Sealed) -> bool:
    """Fetch a question from a server that may not be there yet."""
    try:
        return bool(site.fleet.fetch(claim))
    except Unreachable:
        return False


def ask(grid: LinkGrid, values: Any = VALUES) -> str:
    content = RecordDict({"arrays": from_numpy({"w": values}), "config": ConfigRecord({"plan": ""})})
    (question,) = grid.push_messages([Message(content, grid.nodes["tess"], "train")])
    return question


def arrays(content: RecordDict) -> Any:
    record = content["arrays"]
    assert isinstance(record, ArrayRecord)
    return to_numpy(record)["w"]


def answer(grid: LinkGrid, question: str) -> Message:
    (reply,) = grid._pull([question], 20.0)
    return reply


def test_arrays_come_back_as_they_were_sent(grid: LinkGrid, sites: dict[str, Site]) -> None:
    question, site = ask(grid), sites["tess"]
    claim = site.claim()
    message, _, _ = open_question(site.fleet.fetch(claim), site.fleet.node, site.blobs)
    assert np.array_equal(arrays(message.content), VALUES)
    reply, _ = site.reply(claim, VALUES + 1)
    assert site.fleet.push(reply) and not site.fleet.push(reply)
    assert np.array_equal(arrays(answer(grid, question).content), VALUES + 1)


def test_nobody_else_reads_or_writes_them(
    grid: LinkGrid, running: Any, sites: dict[str, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(grid)
    claim = sites["tess"].claim()
    blob, outside = blob_of(sites["tess"].fleet.fetch(claim)), envelope(claim)
    assert blob is not None
    with pytest.raises(BadAnswer, match="HTTP 400"):
        sites["k2"].transfer.fetch(outside.run, outside.id, blob)
    reply, own = sites["tess"].reply(claim, VALUES + 2)
    monkeypatch.setattr(sites["tess"].fleet._blobs, "send", lambda *_: None)
    assert sites["tess"].fleet.push(reply)  # announced, and still to come
    sites["k2"].blobs.write([(sites["tess"].blobs.folder / own.id).read_bytes()])
    with pytest.raises(BadAnswer, match="HTTP 400"):
        sites["k2"].transfer.send(outside.run, envelope(reply).id, own)
    other = sites["tess"].blobs.write([b"not of that message"])
    with pytest.raises(BadAnswer, match="HTTP 400"):  # nor does a member write what is not its reply's
        sites["tess"].transfer.send(outside.run, outside.id, other)
    with pytest.raises(BadAnswer, match="HTTP 400"):
        sites["k2"].transfer.fetch(outside.run, "../" + outside.id[3:], blob)
    Sites(running.home / "sites").revoke("revoked")
    with pytest.raises(NotAdmitted):
        sites["revoked"].transfer.fetch(outside.run, outside.id, blob)


def flip(path: Path, at: int = 3 * STEP) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        changed = bytes([file.read(1)[0] ^ 1])
        file.seek(at)
        file.write(changed)


def tell_instead(site: Site, reply: Sealed, reason: str) -> None:
    """Send why there is no reply; the server has been told of that reply already, and takes this in its place."""
    told = error_instead(reply, reason)
    assert told is not None and site.fleet.push(told)


def test_a_reply_that_changed_on_its_way_is_refused_and_sent_anew(
    grid: LinkGrid, running: Any, sites: dict[str, Site], on_its_way: OnItsWay
) -> None:
    question, site = ask(grid), sites["tess"]
    reply, blob = site.reply(site.claim(), VALUES + 3)
    on_its_way.change_at(3 * STEP)
    with pytest.raises(Unreachable, match="it is sent anew"):
        site.fleet.push(reply)
    assert not list((running.home / "link" / "blobs").glob(f"{blob.id}*"))
    assert "a reply is not taken: blob " in (running.home / "logs" / "link.log").read_text()
    on_its_way.change_at(None)
    assert site.fleet.push(reply)
    assert np.array_equal(arrays(answer(grid, question).content), VALUES + 3)


def test_a_reply_that_changed_on_its_sites_disk_is_refused_and_another_says_why(
    grid: LinkGrid, sites: dict[str, Site]
) -> None:
    question, site = ask(grid), sites["tess"]
    reply, blob = site.reply(site.claim(), VALUES + 5)
    flip(site.blobs.folder / blob.id)
    with pytest.raises(WrongBlob, match="on this disk") as caught:
        site.fleet.push(reply)
    tell_instead(site, reply, str(caught.value))
    assert answer(grid, question).error.reason == str(caught.value)


def test_a_reply_that_changed_on_the_servers_disk_is_not_used(
    grid: LinkGrid, running: Any, sites: dict[str, Site]
) -> None:
    question, site = ask(grid), sites["tess"]
    reply, blob = site.reply(site.claim(), VALUES + 6)
    assert site.fleet.push(reply)
    flip(running.home / "link" / "blobs" / blob.id)
    assert "can't be read: WrongBlob" in answer(grid, question).error.reason


def test_a_site_uses_nothing_that_is_not_what_its_name_says(
    grid: LinkGrid, running: Any, sites: dict[str, Site]
) -> None:
    ask(grid)
    site = sites["tess"]
    site.blobs.sweep(())
    (sent,) = (running.home / "link" / "blobs").iterdir()
    flip(sent)
    with pytest.raises(WrongBlob, match="other bytes"):
        site.fleet.fetch(site.claim())
    assert list(site.blobs.folder.iterdir()) == []


@pytest.mark.parametrize("left", ["whole", "part"])
def test_what_changed_at_the_site_since_it_came_is_fetched_anew(
    grid: LinkGrid, sites: dict[str, Site], left: str
) -> None:
    ask(grid)
    site = sites["tess"]
    claim = site.claim()
    blob = blob_of(site.fleet.fetch(claim))
    assert blob is not None
    whole = site.blobs.folder / blob.id
    flip(whole, STEP)
    if left == "part":  # as when the power was cut while it came
        os.truncate(whole.replace(site.blobs.part(blob)), 2 * STEP)
    message, _, _ = open_question(site.fleet.fetch(claim), site.fleet.node, site.blobs)
    assert np.array_equal(arrays(message.content), VALUES)


def test_what_a_site_has_no_room_for_is_refused_and_nothing_of_it_stays(
    grid: LinkGrid, sites: dict[str, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(grid)
    site = sites["tess"]
    site.blobs.sweep(())
    claim, write_all = site.claim(), blob_transfer.write_all

    def full(file: int, data: memoryview, at: int) -> None:
        if at >= 2 * STEP:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(file, data, at)

    monkeypatch.setattr(blob_transfer, "write_all", full)
    with pytest.raises(CannotWrite, match=r"tess-blobs has no room for a message's 5,2\d\d,\d{3} bytes: No space left"):
        site.fleet.fetch(claim)
    assert list(site.blobs.folder.iterdir()) == []
    with pytest.raises(CannotWrite, match="has no room"):  # which is seen before anything is asked for
        site.transfer.fetch(1, "", Blob("0" * 64, 2**60))


def test_what_is_too_large_is_not_taken_and_another_reply_says_so(grid: LinkGrid, sites: dict[str, Site]) -> None:
    question, site = ask(grid), sites["tess"]
    reply, _ = site.reply(site.claim(), np.zeros(LARGEST_MB * 2**20 // 8))
    with pytest.raises(TooLarge):
        site.fleet.push(reply)
    tell_instead(site, reply, "too large")
    assert answer(grid, question).error.reason == "too large"


@pytest.mark.parametrize("module", ["link_app", "gateway_server"])
def test_a_reply_outlasts_the_process_that_is_killed_while_it_comes(
    grid: LinkGrid, running: Any, sites: dict[str, Site], on_its_way: OnItsWay, module: str
) -> None:
    question, site = ask(grid), sites["tess"]
    reply, blob = site.reply(site.claim(), VALUES + (7 if module == "link_app" else 8))
    server = running.home / "link" / "blobs"

    def kill() -> None:
        running.until(lambda: some_has_come(server, blob), "some has come")
        running.kill(f"astrofed.server.service.{module}")

    on_its_way.call_at(3 * STEP, kill)
    with pytest.raises(Unreachable):
        site.fleet.push(reply)
    on_its_way.starts.clear()
    running.until(lambda: pushed(site, reply), "the rest has come")
    assert on_its_way.starts == [] or on_its_way.starts[0] > 0  # nothing that had come was sent again
    assert np.array_equal(arrays(answer(grid, question).content), VALUES + (7 if module == "link_app" else 8))


def test_a_question_outlasts_a_gateway_that_is_killed_while_it_goes(
    grid: LinkGrid, running: Any, sites: dict[str, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(grid, LONG)
    site, write_all = sites["tess"], blob_transfer.write_all
    site.blobs.sweep(())
    claim = site.claim()
    starts: list[int] = []

    def killing(file: int, data: memoryview, at: int) -> None:
        starts.append(at)
        if len(starts) == 3:
            running.kill("astrofed.server.service.gateway_server")
        write_all(file, data, at)

    monkeypatch.setattr(blob_transfer, "write_all", killing)
    with pytest.raises(Unreachable):
        site.fleet.fetch(claim)
    (part,) = site.blobs.folder.iterdir()
    come, before = part.stat().st_size, len(starts)
    assert 2 * STEP < come < LONG.nbytes
    running.until(lambda: fetched(site, claim), "the rest has come")
    assert starts[before] == come


def test_what_was_cut_off_goes_on_from_there(
    grid: LinkGrid, running: Any, sites: dict[str, Site], monkeypatch: pytest.MonkeyPatch, on_its_way: OnItsWay
) -> None:
    question, site, server = ask(grid), sites["tess"], running.home / "link" / "blobs"
    site.blobs.sweep(())
    claim = site.claim()
    write_all = blob_transfer.write_all

    def cut(file: int, data: memoryview, start: int) -> None:
        if start:
            raise HTTPException("cut off")
        write_all(file, data, start)

    monkeypatch.setattr(blob_transfer, "write_all", cut)
    with pytest.raises(Unreachable):
        site.fleet.fetch(claim)
    (part,) = site.blobs.folder.iterdir()
    come = part.stat().st_size
    assert part.name.endswith(".part") and 0 < come < VALUES.nbytes
    starts = []
    monkeypatch.setattr(blob_transfer, "write_all", lambda f, data, at: (starts.append(at), write_all(f, data, at)))
    reply, blob = site.reply(claim, VALUES + 4)
    assert starts[0] == come

    def cut_off() -> None:
        running.until(lambda: some_has_come(server, blob), "some has come")
        raise HTTPException("cut off")

    on_its_way.call_at(3 * STEP, cut_off)
    with pytest.raises(Unreachable):
        site.fleet.push(reply)
    on_its_way.starts.clear()
    running.until(lambda: site.fleet.push(reply), "the rest has come")
    assert on_its_way.starts[0] > 0
    assert np.array_equal(arrays(answer(grid, question).content), VALUES + 4)


def test_no_file_of_a_site_can_be_named(running: Any, sites: dict[str, Site]) -> None:
    context = ssl.create_default_context(cafile=str(running.home / "authority" / "ca.crt"))
    with running.client(context) as client:
        for path in ("pull-blob", "push-blob", "../run/blob-come"):
            headers = running.signed(running.keys["tess"]) | {"content-type": blob_transfer.OCTETS}
            named = {"astrofed-run": "1", "astrofed-message": "a" * 64, "astrofed-size": "1", "astrofed-start": "0"}
            told = client.post(f"/v1/fleet/{path}", headers={**headers, **named, "astrofed-blob": "../../server.toml"})
            assert told.status_code in (400, 404)
