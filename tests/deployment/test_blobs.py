"""Large arrays on their way: unchanged, between those alone whom they concern, and on from where they were cut off."""

import ssl
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from astrofed.client.service import blob_transfer
from astrofed.client.service.blob_transfer import BlobTransfer
from astrofed.client.service.fleet import Fleet
from astrofed.client.service.messages import blob_of, envelope, open_question, seal_reply
from astrofed.client.service.refusals import BadAnswer, NotAdmitted, TooLarge, Unreachable
from astrofed.client.service.sealed import Sealed
from astrofed.server.service.link_grid import LinkGrid
from astrofed.server.service.sites import Sites
from astrofed.shared import records
from astrofed.shared.arrays import from_numpy, to_numpy
from astrofed.shared.blobs import Blob, Blobs, WrongBlob
from astrofed.shared.packing import Form

VALUES = np.random.default_rng(1).random(5 * 2**20 // 8)
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


def ask(grid: LinkGrid) -> str:
    content = RecordDict({"arrays": from_numpy({"w": VALUES}), "config": ConfigRecord({"plan": ""})})
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


def test_what_is_not_what_its_name_says_is_deleted_and_can_be_sent_again(
    grid: LinkGrid, running: Any, sites: dict[str, Site]
) -> None:
    question, site = ask(grid), sites["tess"]
    reply, blob = site.reply(site.claim(), VALUES + 3)
    path = site.blobs.folder / blob.id
    right = path.read_bytes()
    path.write_bytes(bytes(len(right)))
    with pytest.raises(BadAnswer, match="HTTP 400"):
        site.fleet.push(reply)
    assert not list((running.home / "link" / "blobs").glob(f"{blob.id}*"))
    path.write_bytes(right)
    assert site.fleet.push(reply)
    assert np.array_equal(arrays(answer(grid, question).content), VALUES + 3)


def test_a_site_uses_nothing_that_is_not_what_its_name_says(
    grid: LinkGrid, running: Any, sites: dict[str, Site]
) -> None:
    ask(grid)
    site = sites["tess"]
    site.blobs.sweep(())
    (sent,) = (running.home / "link" / "blobs").iterdir()
    sent.write_bytes(bytes(sent.stat().st_size))
    with pytest.raises(WrongBlob, match="other bytes"):
        site.fleet.fetch(site.claim())
    assert list(site.blobs.folder.iterdir()) == []


def test_what_is_too_large_is_not_taken(grid: LinkGrid, sites: dict[str, Site]) -> None:
    ask(grid)
    site = sites["tess"]
    reply, _ = site.reply(site.claim(), np.zeros(LARGEST_MB * 2**20 // 8))
    with pytest.raises(TooLarge):
        site.fleet.push(reply)


def test_what_was_cut_off_goes_on_from_there(
    grid: LinkGrid, running: Any, sites: dict[str, Site], monkeypatch: pytest.MonkeyPatch
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

    class Cut:
        """Reads from files until a connection is cut."""

        def __getattr__(self, name: str) -> Any:
            return getattr(blob_transfer_os, name)

        def pread(self, file: int, size: int, at: int) -> bytes:
            read.append(at)
            if at >= stop[0]:
                running.until(lambda: any(each.stat().st_size for each in server.glob(f"{blob.id}.*")), "some has come")
                raise HTTPException("cut off")
            return blob_transfer_os.pread(file, size, at)

    read: list[int] = []
    stop, blob_transfer_os = [3 * 2**20], blob_transfer.os
    monkeypatch.setattr(blob_transfer, "os", Cut())
    with pytest.raises(Unreachable):
        site.fleet.push(reply)
    read.clear()
    stop[0] = 10**9
    running.until(lambda: site.fleet.push(reply), "the rest has come")
    assert read[0] > 0
    assert np.array_equal(arrays(answer(grid, question).content), VALUES + 4)


def test_no_file_of_a_site_can_be_named(running: Any, sites: dict[str, Site]) -> None:
    context = ssl.create_default_context(cafile=str(running.home / "authority" / "ca.crt"))
    with running.client(context) as client:
        for path in ("pull-blob", "push-blob", "../run/blob-come"):
            headers = running.signed(running.keys["tess"]) | {"content-type": blob_transfer.OCTETS}
            named = {"astrofed-run": "1", "astrofed-message": "a" * 64, "astrofed-size": "1", "astrofed-start": "0"}
            told = client.post(f"/v1/fleet/{path}", headers={**headers, **named, "astrofed-blob": "../../server.toml"})
            assert told.status_code in (400, 404)
