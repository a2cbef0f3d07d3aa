"""Asynchronous rounds: late replies count less, are screened against their own model, and nobody waits for the slow."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.serverapp import Grid

import astrofed
from astrofed.server.app import Settings, Silent, run_federation
from astrofed.server.checkpoint import load_arrays
from astrofed.server.nodes import PassingGrid
from astrofed.server.record import read_record
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import Plan, PlanError, load_plan
from astrofed.simulations.compatibility import check_plan
from astrofed.simulations.embedded import EmbeddedGrid
from astrofed.simulations.sites import build_simulated_client_app


class SlowSite(PassingGrid):
    """Holds back the replies of one node to train messages until the others have been asked a number of times."""

    def __init__(self, grid: Grid, node: int, rounds: int) -> None:
        super().__init__(grid)
        self.node, self.rounds = node, rounds
        self.asked = 0
        self.held: dict[str, int] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        self.asked += 1
        identifiers = list(super().push_messages(sent))
        for identifier, message in zip(identifiers, sent, strict=True):
            if message.metadata.dst_node_id == self.node:
                self.held[identifier] = self.asked + self.rounds
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ready = [each for each in message_ids if self.held.get(each, 0) <= self.asked]
        return super().pull_messages(ready)


def _run(plan: Plan, out: Path, late: int) -> SlowSite:
    grid = SlowSite(EmbeddedGrid(build_simulated_client_app(out), len(plan.participants)), 5, late)  # the fourth
    run_federation(grid, Settings(plan, out), Silent())
    return grid


def _buffered(small: dict[str, Any], **strategy: Any) -> Plan:
    return load_plan(small | {"strategy": {"name": "FedAvg", "buffer": 3} | strategy})


def test_a_buffer_of_all_without_delay_is_the_synchronous_run(small: dict[str, Any], tmp_path: Path) -> None:
    plain = astrofed.simulate(small, out=tmp_path / "plain")
    buffered = astrofed.simulate(small | {"strategy": {"name": "FedAvg", "buffer": 4}}, out=tmp_path / "buffered")
    assert plain.model_path.read_bytes() == buffered.model_path.read_bytes()


def test_the_model_moves_on_without_the_slow_site(small: dict[str, Any], tmp_path: Path) -> None:
    _run(_buffered(small), tmp_path / "run", late=2)
    rounds = read_record(tmp_path / "run")[1][1:]
    assert [len(entry.accepted) for entry in rounds] == [3, 3, 3, 3]
    slow = [number for number, entry in enumerate(rounds, start=1) if "keck" in entry.accepted]
    assert slow == [3]
    assert any("keck: asked 2 rounds ago" in note for note in rounds[2].notes)
    assert "keck" not in rounds[0].sites, "who is at work is not asked to evaluate"
    assert "keck" in rounds[-1].sites


def test_a_late_change_counts_one_over_the_root_of_one_plus_its_age(small: dict[str, Any], tmp_path: Path) -> None:
    """One site of two, late by one round, alone in its buffer: the step is its change from the model it was sent."""
    data = small | {"participants": small["participants"][2:], "rounds": 2, "strategy": {"name": "FedAvg", "buffer": 1}}
    plan = load_plan(data)
    out = tmp_path / "run"
    grid = SlowSite(EmbeddedGrid(build_simulated_client_app(out), 2), 3, 1)
    run_federation(grid, Settings(plan, out), Silent())
    rounds = read_record(out)[1][1:]
    assert [entry.accepted for entry in rounds] == [("la_silla",), ("keck",)]
    alone = astrofed.simulate(data | {"participants": data["participants"][1:], "rounds": 1}, out=tmp_path / "alone")
    initial = {name: tensor.numpy() for name, tensor in build_model(plan).state_dict().items()}
    one = load_arrays(out / "checkpoints" / rounds[0].checkpoint)
    last, his = load_arrays(out / "model.safetensors"), load_arrays(alone.model_path)
    for name in initial:
        expected = one[f"model/{name}"] + 2**-0.5 * (his[name].astype(np.float64) - initial[name])
        np.testing.assert_allclose(last[name], expected, rtol=1e-5, atol=1e-7)


def test_what_is_too_old_is_kept_out_with_its_reason(small: dict[str, Any], tmp_path: Path) -> None:
    _run(_buffered(small, max_staleness=1), tmp_path / "run", late=2)
    reasons = [item.reason for entry in read_record(tmp_path / "run")[1] for item in entry.quarantined]
    assert reasons == ["stale: asked in round 1, 2 rounds ago; at most 1 are used"]


def test_a_site_that_never_replies_is_lost_and_asked_again(small: dict[str, Any], tmp_path: Path) -> None:
    grid = _run(_buffered(small, buffer=4, timeout_s=0.5), tmp_path / "run", late=10**6)
    rounds = read_record(tmp_path / "run")[1][1:]
    assert all(len(entry.accepted) == 3 for entry in rounds)
    assert all(item.reason == "no reply within 0.5 s" for entry in rounds for item in entry.quarantined)
    assert len(grid.held) == len(rounds)


def test_liars_are_left_out_of_buffers_as_of_rounds(small: dict[str, Any], tmp_path: Path) -> None:
    small["participants"][0]["attack"] = {"name": "sign-flip", "scale": 10.0}
    strategy = {"name": "robust", "rule": "median", "f": 1, "buffer": 3}
    result = astrofed.simulate(small | {"strategy": strategy, "rounds": 6}, out=tmp_path / "run")
    assert result.metrics["loss"] < result.rounds[0].metrics["loss"]
    with pytest.raises(PlanError, match="needs 5 replies in each buffer"):
        check_plan(load_plan(small | {"strategy": strategy | {"rule": "krum"}}))


@pytest.mark.parametrize(
    ("strategy", "message"),
    [({"buffer": 5}, "can't come from 4"), ({"quorum": 4}, "more than the buffer"), ({"min_train_nodes": 2}, "idle")],
)
def test_buffers_that_make_no_sense_are_refused(small: dict[str, Any], strategy: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_plan(_buffered(small, **strategy))
