"""A whole federation in this process: what it gives, that it can be repeated, and what it says of mistakes."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import astrofed
from astrofed.client.data.mistakes import TableMissing
from astrofed.server.checkpoint import load_arrays
from astrofed.server.enrolment import NotEnrolled
from astrofed.server.federation import Interrupted, NobodyAccepted, StrategyFailed
from astrofed.server.record import OtherPlan, RunExists, verify_run
from astrofed.shared.files import CannotWrite
from astrofed.shared.plan import Plan, PlanError
from astrofed.shared.record import Round, Start
from astrofed.simulations.result import read_result
from astrofed.simulations.simulate import simulate, train

MY_STRATEGY = """
from flwr.serverapp.strategy import FedAvg

class HalfStep(FedAvg):
    def __init__(self, *, fraction: float = 0.5) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.fraction = fraction

    def configure_train(self, server_round, arrays, config, grid):
        self.before = {name: array.numpy() for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        average, metrics = super().aggregate_train(server_round, replies)
        step = {k: self.before[k] + self.fraction * (v.numpy() - self.before[k]) for k, v in average.items()}
        return type(average)({name: type(average[name])(value) for name, value in step.items()}), metrics
"""


class Watching:
    """Remembers what it was told, and asks to stop after a round."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.entries: list[Round] = []
        self.start: Start | None = None
        self._stop_after = stop_after

    def started(self, plan: Plan, start: Start) -> None:
        self.start = start

    def round_done(self, entry: Round) -> None:
        self.entries.append(entry)

    def should_stop(self) -> bool:
        return self._stop_after is not None and len(self.entries) > self._stop_after


def test_a_run_learns_and_says_so(tmp_path: Path, small: dict[str, Any]) -> None:
    watching = Watching()
    result = simulate(small, out=tmp_path / "run", observer=watching)
    assert [entry.round for entry in result.rounds] == [0, 1, 2, 3, 4] and tuple(watching.entries) == result.rounds
    assert watching.start is not None and [site.participant for site in watching.start.enrolled] == [
        "tess", "k2", "la_silla", "keck",
    ]  # fmt: skip
    assert result.rounds[0].loss is not None and result.metrics["loss"] < result.rounds[0].loss
    assert set(result.rounds[1].accepted) == {"tess", "k2", "la_silla", "keck"}
    assert result.report.stat().st_size > 10_000
    assert verify_run(result.run).rounds == 5
    text = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert text["history"][-1]["loss"] == text["metrics"]["loss"]
    assert text["privacy"] == [] and text["mode"] == "federated" and Path(text["model"]).is_file()
    assert read_result(result.run) == result


def test_the_model_can_be_used(tmp_path: Path, small: dict[str, Any]) -> None:
    result = simulate(small, out=tmp_path / "run")
    saved = load_arrays(result.model_path)
    for name, tensor in result.load_model().state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), saved[name])


def test_the_same_plan_gives_the_same_bytes(tmp_path: Path, small: dict[str, Any]) -> None:
    """Whatever the number of workers, and whatever was drawn before."""
    torch.manual_seed(1)
    first = simulate(small, out=tmp_path / "first")
    torch.manual_seed(2)
    np.random.seed(5)
    second = simulate({**small, "engine": {"threads": 1, "workers": 2}}, out=tmp_path / "second")
    assert first.model_path.read_bytes() == second.model_path.read_bytes()
    other = simulate({**small, "seed": 4}, out=tmp_path / "other")
    assert first.model_path.read_bytes() != other.model_path.read_bytes()


def test_a_run_that_was_asked_to_stop_goes_on_exactly(tmp_path: Path, small: dict[str, Any]) -> None:
    whole = simulate(small, out=tmp_path / "whole")
    with pytest.raises(Interrupted, match="after round 2 of 4"):
        simulate(small, out=tmp_path / "part", observer=Watching(stop_after=2))
    assert (tmp_path / "part" / "report.html").is_file() and not (tmp_path / "part" / "model.safetensors").exists()
    again = Watching()
    resumed = simulate(small, out=tmp_path / "part", resume=True, observer=again)
    assert [entry.round for entry in again.entries] == [3, 4]
    assert resumed.model_path.read_bytes() == whole.model_path.read_bytes()
    assert [entry.metrics for entry in resumed.rounds] == [entry.metrics for entry in whole.rounds]


@pytest.mark.parametrize(
    "name", ["FedProx", "FedAdam", "FedYogi", "FedAvgM", "FedMedian", "FedTrimmedAvg", "flwr.Krum"]
)
def test_stock_strategies_run_by_their_names(tmp_path: Path, small: dict[str, Any], name: str) -> None:
    options = {"FedProx": {"proximal_mu": 0.1}, "flwr.Krum": {"num_malicious_nodes": 0}}.get(name, {})
    result = simulate({**small, "rounds": 2, "strategy": {"name": name, **options}}, out=tmp_path / "run")
    assert len(result.rounds) == 3 and all(entry.skipped is None for entry in result.rounds)
    assert np.isfinite(result.metrics["loss"])


@pytest.mark.parametrize("rule", ["mean", "median", "trimmed-mean", "krum", "multi-krum"])
def test_robust_rules_run(tmp_path: Path, small: dict[str, Any], rule: str) -> None:
    f = 0 if rule in ("mean", "krum", "multi-krum") else 1
    result = simulate({**small, "rounds": 2, "strategy": {"name": "robust", "rule": rule, "f": f}}, out=tmp_path / "r")
    assert result.rounds[0].loss is not None and result.metrics["loss"] < result.rounds[0].loss


def test_a_users_own_strategy(tmp_path: Path, small: dict[str, Any]) -> None:
    file = tmp_path / "my_strategy.py"
    file.write_text(MY_STRATEGY)
    plan = {**small, "rounds": 2, "strategy": {"name": "HalfStep", "fraction": 0.0}}
    result = simulate(plan, out=tmp_path / "run", plugins=[file])
    assert result.rounds[0].loss == pytest.approx(result.metrics["loss"], rel=1e-6)  # it never moves
    moving = simulate(plan, out=tmp_path / "two", plugins=[file], overrides=["strategy.fraction=1.0"])
    assert moving.metrics["loss"] < result.metrics["loss"]


def test_a_strategy_that_fails_is_named_and_the_record_stays(tmp_path: Path, small: dict[str, Any]) -> None:
    file = tmp_path / "broken.py"
    file.write_text(MY_STRATEGY.replace("HalfStep", "Broken").replace("step = {", "1 / 0; step = {"))
    with pytest.raises(StrategyFailed, match=r"'Broken' failed in aggregate_train, round 1: ZeroDivisionError"):
        simulate({**small, "strategy": "Broken"}, out=tmp_path / "run", plugins=[file])
    assert verify_run(tmp_path / "run").rounds == 1


@pytest.mark.parametrize(
    ("attack", "reason"),
    [({"name": "nan"}, "finite"), ({"name": "inflated-count"}, "enrolled with")],
)
def test_a_bad_reply_is_kept_out_with_its_reason(
    tmp_path: Path, small: dict[str, Any], attack: dict[str, Any], reason: str
) -> None:
    small["participants"][1]["attack"] = attack
    result = simulate(small, out=tmp_path / "run")
    for entry in result.rounds[1:]:
        assert [item.participant for item in entry.quarantined] == ["k2"] and reason in entry.quarantined[0].reason
        assert "k2" not in entry.accepted
    assert result.rounds[0].loss is not None and result.metrics["loss"] < result.rounds[0].loss


def test_when_all_are_kept_out_the_run_says_why(tmp_path: Path, small: dict[str, Any]) -> None:
    for participant in small["participants"]:
        participant["attack"] = {"name": "nan"}
    with pytest.raises(NobodyAccepted, match=r"rounds 1 to 3 changed nothing.*keck: .*finite"):
        simulate(small, out=tmp_path / "run")
    assert verify_run(tmp_path / "run").rounds == 4


def test_missing_data_is_an_error_before_training(tmp_path: Path, small: dict[str, Any]) -> None:
    small["participants"][2]["data"] = str(tmp_path / "nowhere.parquet")
    with pytest.raises(NotEnrolled, match=r"la_silla can't take part: .*nowhere\.parquet"):
        simulate(small, out=tmp_path / "run")
    small["participants"][2]["data"] = "bundled:planets/la_silla"
    assert TableMissing.exit_code == NotEnrolled.exit_code == 2


def test_a_full_disk_keeps_what_was_complete(
    tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from astrofed.server import federation

    save = federation.save_checkpoint

    def full(run: Path, number: int, checkpoint: Any, **settings: Any) -> tuple[str, str]:
        if number == 2:
            raise CannotWrite(f"{run} can't be written: No space left on device")
        return save(run, number, checkpoint, **settings)

    monkeypatch.setattr(federation, "save_checkpoint", full)
    with pytest.raises(CannotWrite, match="No space left"):
        simulate(small, out=tmp_path / "run")
    monkeypatch.undo()
    assert verify_run(tmp_path / "run").rounds == 2
    assert len(simulate(small, out=tmp_path / "run", resume=True).rounds) == 5


def test_a_plan_that_was_refused_for_its_data_is_mended_and_run_in_the_same_folder(
    tmp_path: Path, small: dict[str, Any]
) -> None:
    mistaken = {**small, "rounds": 1, "participants": [{**small["participants"][0], "data": str(tmp_path / "none")}]}
    with pytest.raises(NotEnrolled, match="tess can't take part"):
        simulate(mistaken, out=tmp_path / "run")
    assert len(simulate({**small, "rounds": 1}, out=tmp_path / "run").rounds) == 2


def test_folders(tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small["rounds"] = 1
    assert simulate(small).run == tmp_path / "runs" / "small"
    assert simulate(small).run == tmp_path / "runs" / "small-2"
    with pytest.raises(RunExists, match="--resume"):
        simulate(small, out="runs/small")
    with pytest.raises(OtherPlan, match="seed"):
        simulate({**small, "seed": 9}, out="runs/small", resume=True)
    assert simulate(small, resume=True).run == tmp_path / "runs" / "small-2"  # nothing left to do


def test_one_participant_is_the_centralised_case(tmp_path: Path, small: dict[str, Any]) -> None:
    small["strategy"] = {"name": "robust", "rule": "median", "f": 1}
    small["participants"][0]["attack"] = {"name": "sign-flip"}
    result = train(small, out=tmp_path / "run")
    assert result.plan.mode == "single" and [p.name for p in result.plan.participants] == ["tess"]
    assert result.rounds[0].loss is not None and result.metrics["loss"] < result.rounds[0].loss
    assert result.plan.participants[0].attack is None


def test_mode_single_refuses_several(tmp_path: Path, small: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="takes one training participant, the plan has 4"):
        simulate({**small, "mode": "single"}, out=tmp_path / "run")


def test_in_a_running_event_loop(tmp_path: Path, small: dict[str, Any]) -> None:
    """As in a notebook."""

    async def cell() -> astrofed.RunResult:
        return astrofed.simulate({**small, "rounds": 1}, out=tmp_path / "run")

    with ThreadPoolExecutor(1) as pool:  # asyncio.run would take this thread's own loop from tests that follow
        assert len(pool.submit(asyncio.run, cell()).result().rounds) == 2


def test_threads_are_put_back(tmp_path: Path, small: dict[str, Any]) -> None:
    before = torch.get_num_threads()
    simulate({**small, "rounds": 1, "engine": {"threads": 2}}, out=tmp_path / "run")
    assert torch.get_num_threads() == before


def test_evaluation_every_other_round(tmp_path: Path, small: dict[str, Any]) -> None:
    result = simulate({**small, "rounds": 3, "evaluate_every": 2}, out=tmp_path / "run")
    assert [entry.loss is None for entry in result.rounds] == [False, True, False, False]
