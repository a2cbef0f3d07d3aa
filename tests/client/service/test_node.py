"""The node against a real SuperLink: it answers what it may and refuses the rest; no reply is lost or counted twice."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flwr.app import RecordDict

from astrofed.client.service.diary import Diary
from astrofed.client.service.executor import Executor
from astrofed.client.service.fleet import Fleet
from astrofed.client.service.gatekeeper import Gatekeeper
from astrofed.client.service.node import Node
from astrofed.client.service.spool import Spool


class Running:
    """A node at work in a thread."""

    def __init__(self, joined: Any) -> None:
        home = joined.home
        self.lines: list[str] = []
        welcome = home.welcome
        self.node = Node(
            home=home,
            fleet=Fleet(welcome.address, welcome.ca_certificate, home.key, 10**9),
            spool=Spool(home.spool),
            gatekeeper=Gatekeeper(home),
            executor=Executor(home.folder, home.file.limits, self.lines.append),
            diary=Diary(home.logs, self.lines.append),
        )
        self.thread = threading.Thread(target=self.node.run)
        self.thread.start()

    def connected(self) -> bool:
        return any(line.startswith("connected") for line in self.lines)

    def stop(self) -> None:
        self.node.stop()
        self.node.stop()
        self.thread.join(30)
        self.node.diary.close()


@pytest.fixture
def start(wait_until: Any) -> Iterator[Callable[[Any], Running]]:
    running: list[Running] = []

    def begin(joined: Any) -> Running:
        running.append(Running(joined))
        wait_until(running[-1].connected)
        return running[-1]

    yield begin
    for each in running:
        each.stop()


@pytest.mark.parametrize("packed", [True, False])
def test_a_site_enrols(link: Any, join: Any, plan: str, start: Any, packed: bool) -> None:
    site = join()
    start(site)
    run = link.new_run()
    question = link.ask(run, site.node, "query.enrol", RecordDict({"config": link.signed(plan)}), packed=packed)
    reply = link.reply(run, question)
    assert not reply.has_error(), reply.error
    assert reply.content.config_records["site"]["name"] == "k2"
