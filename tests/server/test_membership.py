"""Sites that join and leave between rounds."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from flwr.serverapp import Grid

from astrofed.server import enrolment
from astrofed.server.app import Settings, Silent, run_federation
from astrofed.server.membership import participation
from astrofed.server.nodes import NodesMissing, PassingGrid
from astrofed.server.record import read_record, verify_run
from astrofed.shared.plan import Plan, load_plan
from astrofed.shared.record import Round
from astrofed.simulations.embedded import EmbeddedGrid
from astrofed.simulations.sites import build_simulated_client_app


class Comings(PassingGrid):
    """Shows each node from the round it comes in to before that in which it goes; who is gone does not answer."""

    def __init__(self, grid: Grid, stays: dict[int, tuple[int, int]]) -> None:
        super().__init__(grid)
        self.stays, self.round = stays, 1

    def _here(self, node: int) -> bool:
        comes, goes = self.stays.get(node, (0, 10**6))
        return comes <= self.round < goes

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in super().get_node_ids() if self._here(node)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return super().send_and_receive([m for m in messages if self._here(m.metadata.dst_node_id)], timeout=timeout)


class Clock(Silent):
    """Moves the grid's time on by a round when one is done."""

    def __init__(self, grid: Comings) -> None:
        self.grid = grid

    def round_done(self, entry: Round) -> None:
        self.grid.round = entry.round + 1


def _plan(small: dict[str, Any], **strategy: Any) -> Plan:
    return load_plan(
        small | {"rounds": 5, "strategy": {"name": "FedAvg", "membership": "open", "quorum": 2} | strategy}
    )


def _run(plan: Plan, out: Path, stays: dict[int, tuple[int, int]]) -> list[Round]:
    grid = Comings(EmbeddedGrid(build_simulated_client_app(out), len(plan.participants)), stays)
    run_federation(grid, Settings(plan, out, quorum=plan.strategy.quorum), Clock(grid))
    verify_run(out)
    return read_record(out)[1]


def test_who_comes_later_joins_and_who_goes_is_missed(small: dict[str, Any], tmp_path: Path) -> None:
    rounds = _run(_plan(small), tmp_path / "run", {3: (3, 10**6), 5: (0, 4)})  # k2 comes for round 3, keck goes after 3
    assert [entry.accepted for entry in rounds[1:]] == [
        ("tess", "la_silla", "keck"),
        ("tess", "la_silla", "keck"),
        ("tess", "k2", "la_silla", "keck"),
        ("tess", "k2", "la_silla"),
        ("tess", "k2", "la_silla"),
    ]
    assert [site.participant for entry in rounds for site in entry.joined] == ["k2"]
    assert [item.participant for item in rounds[4].quarantined if "no reply" in item.reason][:1] == ["keck"]
    by_name = {part.participant: part for part in participation(read_record(tmp_path / "run")[0], rounds)}
    assert (by_name["k2"].since, by_name["k2"].used, by_name["k2"].reliability) == (3, 3, 1.0)
    assert (by_name["keck"].used, by_name["keck"].kept_out) == (3, 2)


def test_who_comes_back_goes_on(small: dict[str, Any], tmp_path: Path) -> None:
    plan = _plan(small)
    grid = Comings(EmbeddedGrid(build_simulated_client_app(tmp_path / "run"), 4), {})
    away = {2, 3}

    class Away(Clock):
        def round_done(self, entry: Round) -> None:
            super().round_done(entry)
            self.grid.stays = {5: (10**6, 10**6)} if self.grid.round in away else {}

    run_federation(grid, Settings(plan, tmp_path / "run", quorum=2), Away(grid))
    assert ["keck" in entry.accepted for entry in read_record(tmp_path / "run")[1][1:]] == [
        True,
        False,
        False,
        True,
        True,
    ]


def test_fewer_than_the_quorum_do_not_begin(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment, "CONNECT_TIMEOUT_S", 0.05)
    with pytest.raises(NodesMissing, match="3 nodes are connected"):
        _run(_plan(small, quorum=4), tmp_path / "run", {3: (3, 10**6)})


def test_a_fixed_run_lets_nobody_in(small: dict[str, Any], tmp_path: Path) -> None:
    rounds = _run(_plan(small, membership="fixed"), tmp_path / "run", {3: (3, 10**6)})
    assert all("k2" not in entry.accepted for entry in rounds)
