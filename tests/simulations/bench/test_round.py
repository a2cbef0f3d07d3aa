"""The benchmark of a deployed round: its rows and targets follow from the times; the bytes alone really move."""

from pathlib import Path

import pytest

from astrofed.server.service.authority import Authority
from astrofed.server.service.setup import make_server
from astrofed.simulations.bench import round as bench
from astrofed.simulations.bench.free_port import free_port
from astrofed.simulations.bench.result import Machine
from astrofed.simulations.bench.round_bytes import PIECE, bytes_server

MACHINE = Machine("a processor", 2, 0.0, {})


def test_rows_compare_medians_and_judge_them() -> None:
    small = bench._rows(1000, [0.5, 0.7, 0.6], [0.1, 0.2, 0.3], [6.0], "")
    large = bench._rows(25_000_000, [9.0], [3.0], [], "no end within 300 s")
    ours, bare, flower = small
    assert (ours.seconds, ours.fastest, ours.rounds) == (0.6, 0.5, 3)
    assert (ours.ratio_to_bytes, ours.ratio_to_stock) == (pytest.approx(3), pytest.approx(10))
    assert [target.met for target in ours.targets] == [True]
    assert (bare.seconds, flower.seconds) == (0.2, 6.0)
    assert [(target.met, target.measured) for target in large[0].targets] == [(False, 3.0)]
    assert large[0].ratio_to_stock is None and large[2].note == "no end within 300 s"
    result = bench.RoundResult(MACHINE, (*small, *large))
    assert result.met is False
    assert result.to_dict()["rows"][0]["runtime"] == bench.OURS
    assert result.table().row_count == 6


def test_the_bytes_alone_are_moved_over_tls(tmp_path: Path) -> None:
    ports = {"port": free_port(), "admin_port": free_port()}
    list(make_server(tmp_path / "server", {"name": "x", "host": "127.0.0.1", "listen": "127.0.0.1", **ports}))
    authority = Authority(tmp_path / "server" / "authority")
    certificate = tmp_path / "server" / "authority" / "ca.crt"
    with bytes_server(authority.server_certificate, authority.server_key, certificate, 2) as bare:
        assert 0 < bare.round(1000) < 60
        assert 0 < bare.round(PIECE + 1) < 60


@pytest.mark.parametrize(("held", "met"), [(8 * 10**8, True), (8 * 10**8 + bench.BLOCKS + 1, False)])
def test_memory_is_told_in_models_and_judged_with_room_for_blocks(held: int, met: bool) -> None:
    own, *_ = bench._rows(10**8, [1.0], [1.0], [], "", held)
    assert own.memory == held / (4 * 10**8)
    assert [target.met for target in own.targets if "memory" in target.target] == [met]
