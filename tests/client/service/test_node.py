"""The node against a real SuperLink: it answers what it may and refuses the rest; no reply is lost or counted twice."""

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from astrofed.client.service import node as module
from astrofed.client.service.diary import Diary
from astrofed.client.service.executor import PROGRAM, Executor
from astrofed.client.service.fleet import Fleet
from astrofed.client.service.gatekeeper import Gatekeeper
from astrofed.client.service.node import Node
from astrofed.client.service.refusals import Unreachable
from astrofed.client.service.sealed import Sealed
from astrofed.client.service.spool import Spool
from astrofed.shared.blobs import WrongBlob
from astrofed.shared.files import CannotWrite

SCRIPTED = (sys.executable, str(Path(__file__).parent / "scripted_executor.py"))


class Flaky(Fleet):
    """A connection that breaks while it sends, as often as it is told to."""

    before = after = 0

    def push(self, reply: Sealed) -> bool:
        if self.before:
            self.before -= 1
            raise Unreachable("cut before anything was sent")
        taken = super().push(reply)
        if self.after:
            self.after -= 1
            raise Unreachable("cut before the answer came back")
        return taken


class Running:
    """A node at work in a thread; its executor does what the file `script` in its home says."""

    def __init__(self, joined: Any, program: Any = SCRIPTED) -> None:
        home = joined.home
        self.lines: list[str] = []
        welcome = home.welcome
        spool = Spool(home.spool)
        self.fleet = Flaky(welcome.address, welcome.ca_certificate, home.key, 10**6, spool.blobs)
        self.node = Node(
            home=home,
            fleet=self.fleet,
            spool=spool,
            gatekeeper=Gatekeeper(home),
            executor=Executor(home.folder, home.file.limits, self.lines.append, program),
            diary=Diary(home.logs, self.lines.append),
        )
        self.thread = threading.Thread(target=self.node.run)
        self.thread.start()

    def says(self, words: str) -> bool:
        return any(words in line for line in self.lines)

    def stop(self) -> None:
        self.node.stop()
        self.node.stop()
        self.thread.join(30)
        self.node.diary.close()

    def crash(self) -> None:
        """End without a word to anybody, and without what a clean end does."""
        self.fleet.deactivate = lambda: None  # type: ignore[method-assign]
        self.stop()


@pytest.fixture
def start(wait_until: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Running]]:
    monkeypatch.setattr(module, "LONGEST_S", 0.05)
    running: list[Running] = []

    def begin(joined: Any, script: str = "answer", program: Any = SCRIPTED) -> Running:
        (joined.home.folder / "script").write_text(script)
        running.append(Running(joined, program))
        wait_until(lambda: running[-1].says("connected"))
        return running[-1]

    yield begin
    for each in running:
        each.stop()


def asked(site: Any) -> int:
    path = site.home.folder / "asked"
    return len(path.read_text()) if path.exists() else 0


def train(link: Any, text: str, **changes: Any) -> RecordDict:
    return RecordDict({"config": link.signed(text, **{"server-round": 1, **changes})})


def test_a_real_site_enrols_trains_and_evaluates(
    link: Any, join: Any, private_plan: str, model: ArrayRecord, start: Any
) -> None:
    site = join()
    start(site, program=PROGRAM)
    run = link.new_run()

    def ask(kind: str, packed: bool, **records: Any) -> Any:
        reply = link.reply(run, link.ask(run, site.node, kind, RecordDict(records), packed=packed))
        assert not reply.has_error(), reply.error
        return reply.content

    found = ask("query.enrol", False, config=link.signed(private_plan))
    assert found.config_records["site"]["name"] == "k2"
    pooled = ask("query.statistics", True, config=link.signed(private_plan)).array_records["arrays"]
    import json

    statistics = json.dumps({key: value.numpy().tolist() for key, value in pooled.items()})
    config = link.signed(private_plan, statistics=statistics, **{"server-round": 1})
    found = ask("train", True, config=config, arrays=model)
    assert found.array_records["arrays"].keys() == model.keys()
    assert 0 < found.metric_records["metrics"]["epsilon"] < 8
    found = ask("evaluate", False, config=config, arrays=model)
    assert found.metric_records["metrics"]["loss"] > 0
    assert (site.home.folder / "privacy-ledger.sqlite").exists() or list(site.home.folder.glob("*ledger*"))


def test_what_is_not_signed_never_reaches_the_executor(link: Any, join: Any, plan: str, start: Any) -> None:
    site = join()
    running = start(site)
    run = link.new_run()
    evil = plan.replace('"rounds":4', '"rounds":9')
    contents = [
        RecordDict({"config": ConfigRecord({"plan": plan, "server-round": 1})}),
        train(link, plan, plan=evil),
        RecordDict({"other": ConfigRecord({"plan": plan})}),
        RecordDict({}),
        RecordDict({"packed": ConfigRecord({"format": 1, "header": "[" * 1000, "arrays": b""})}),
    ]
    for content in contents:
        reply = link.reply(run, link.ask(run, site.node, "train", content, packed=False))
        assert reply.has_error() and reply.error.reason.startswith("k2: ")
    reply = link.reply(run, link.ask(run, site.node, "train", RecordDict({"config": ConfigRecord({"x": "y" * 2**20})})))
    assert "more than the 1,000,000 bytes" in reply.error.reason
    assert asked(site) == 0
    assert running.node.counts.refused == len(contents) + 1
    log = (site.home.logs / "node.log").read_text()
    assert log.count("refused a request") == len(contents) + 1


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_reply_whose_sending_failed_is_sent_again_and_counted_once(
    link: Any, join: Any, plan: str, start: Any, cut: str, wait_until: Any
) -> None:
    site = join()
    running = start(site)
    setattr(running.fleet, cut, 2)
    run, before = link.new_run(), link.answered()
    question = link.ask(run, site.node, "train", train(link, plan))
    wait_until(lambda: getattr(running.fleet, cut) == 0 and running.node.spool.waiting == 0)
    assert link.answered() == before + 1
    assert link.reply(run, question).error.reason == "a reply"
    assert asked(site) == 1


def test_a_finished_reply_outlasts_the_node(
    link: Any, join: Any, private_plan: str, start: Any, wait_until: Any
) -> None:
    site = join()
    running = start(site)
    running.fleet.before = 10**6
    run = link.new_run()
    question = link.ask(run, site.node, "train", train(link, private_plan))
    wait_until(lambda: running.node.spool.waiting == 1)
    running.crash()
    start(site)  # the same node, at once
    assert link.reply(run, question).error.reason == "a reply"
    assert asked(site) == 1  # not trained again


@pytest.mark.parametrize("private", [False, True])
def test_a_question_outlasts_a_node_that_dies_at_work(
    link: Any, join: Any, plan: str, private_plan: str, start: Any, wait_until: Any, private: bool
) -> None:
    site = join()
    running = start(site, "hang")
    run = link.new_run()
    question = link.ask(run, site.node, "train", train(link, private_plan if private else plan))
    wait_until(lambda: asked(site) == 1)
    running.crash()
    start(site)
    reason = link.reply(run, question).error.reason
    if private:
        assert "not repeated, for it would be charged twice" in reason
        assert asked(site) == 1
    else:
        assert reason == "a reply"
        assert asked(site) == 2


def test_an_executor_that_dies_costs_one_reply(link: Any, join: Any, plan: str, start: Any) -> None:
    site = join()
    start(site, "die")
    run = link.new_run()
    reply = link.reply(run, link.ask(run, site.node, "train", train(link, plan)))
    assert reply.error.reason == "k2: the executor was killed while it worked (SIGKILL)"
    (site.home.folder / "script").write_text("answer")
    reply = link.reply(run, link.ask(run, site.node, "train", train(link, plan, **{"server-round": 2})))
    assert reply.error.reason == "a reply"


def test_a_full_disk_loses_no_reply(
    link: Any, join: Any, plan: str, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from astrofed.shared.files import CannotWrite

    site = join()
    running = start(site)

    def full(*_: Any, **__: Any) -> None:
        raise CannotWrite("the disk is full")

    monkeypatch.setattr("astrofed.client.service.spool.write_atomically", full)
    run = link.new_run()
    question = link.ask(run, site.node, "train", train(link, plan))
    assert link.reply(run, question).error.reason == "a reply"
    assert running.says("kept in memory")


def test_a_question_that_has_no_room_and_a_reply_that_was_lost_on_the_disk_are_answered_with_why(
    link: Any, join: Any, plan: str, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = join()
    running = start(site)
    fetch, push = running.fleet.fetch, running.fleet.push

    def full(_: Sealed) -> Sealed:
        monkeypatch.setattr(running.fleet, "fetch", fetch)
        raise CannotWrite("spool/blobs has no room")

    def lost(_: Sealed) -> bool:
        monkeypatch.setattr(running.fleet, "push", push)
        raise WrongBlob("blob 00… has other bytes")

    run = link.new_run()
    monkeypatch.setattr(running.fleet, "fetch", full)
    reply = link.reply(run, link.ask(run, site.node, "train", train(link, plan)))
    assert reply.error.reason == "k2: spool/blobs has no room" and asked(site) == 0
    site.home.folder.joinpath("script").write_text("content")
    monkeypatch.setattr(running.fleet, "push", lost)
    reply = link.reply(run, link.ask(run, site.node, "train", train(link, plan)))
    assert reply.error.reason == "k2: blob 00… has other bytes" and asked(site) == 1
    assert running.says("the coordinator is told so instead")


def test_what_nobody_waits_for_is_dropped(link: Any, join: Any, plan: str, start: Any, wait_until: Any) -> None:
    site = join()
    running = start(site)
    running.fleet.before = 10**6
    run = link.new_run()
    link.ask(run, site.node, "train", train(link, plan), ttl=3)
    wait_until(lambda: running.says("expired before it could be sent"))
    assert running.node.spool.waiting == 0


def test_a_run_that_ends_meanwhile_is_no_trouble(link: Any, join: Any, plan: str, start: Any, wait_until: Any) -> None:
    site = join()
    running = start(site, "slow")
    run = link.new_run()
    link.ask(run, site.node, "train", train(link, plan))
    wait_until((site.home.folder / "begun").exists)
    link.state.stop_run(run)
    wait_until(lambda: running.says("run is over"))
    assert running.node.spool.waiting == 0
    (site.home.folder / "script").write_text("answer")
    other = link.new_run()
    assert link.reply(other, link.ask(other, site.node, "train", train(link, plan))).error.reason == "a reply"


def test_stopping_lets_a_task_end_and_sends_its_reply(
    link: Any, join: Any, plan: str, start: Any, wait_until: Any
) -> None:
    site = join()
    running = start(site, "slow")
    run, before = link.new_run(), link.answered()
    link.ask(run, site.node, "train", train(link, plan))
    wait_until((site.home.folder / "begun").exists)
    running.node.stop()
    running.thread.join(30)
    assert running.node.counts.sent == 1 and link.answered() == before + 1


def test_a_server_that_goes_and_comes_back_is_found_again(
    link: Any, join: Any, plan: str, start: Any, wait_until: Any
) -> None:
    site = join()
    running = start(site)
    pull = running.fleet.pull
    failures = 3

    def broken(wait_s: float) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise Unreachable("the server is gone")
        return pull(wait_s)

    running.fleet.pull = broken  # type: ignore[method-assign]
    wait_until(lambda: not failures and sum(line.startswith("connected") for line in running.lines) == 2)
    assert sum("the server is gone" in line for line in running.lines) == 1  # said once, not at every try
    run = link.new_run()
    assert link.reply(run, link.ask(run, site.node, "train", train(link, plan))).error.reason == "a reply"
