"""Mode multimodal as a whole: sites with different modalities, a stop in between, a liar, one participant."""

from pathlib import Path
from typing import Any

import pytest

from astrofed.server.federation import Interrupted
from astrofed.shared.plan import PlanError, load_plan
from astrofed.simulations.compatibility import check_plan
from astrofed.simulations.result import RunResult
from astrofed.simulations.simulate import simulate, train, with_trainers

CONFIG = Path(__file__).parents[2] / "configs" / "multimodal.toml"
SMALL = [
    "task.belts=8",
    "task.sectors=4",
    "model.width=8",
    "model.heads=1",
    "model.depth=1",
    "rounds=3",
    "evaluate_every=3",
]


class StopAfter:
    """An observer that stops a run after a round."""

    def __init__(self, number: int) -> None:
        self._number, self._done = number, 0

    def started(self, *_: Any) -> None: ...

    def round_done(self, entry: Any) -> None:
        self._done = entry.round

    def should_stop(self) -> bool:
        return self._done >= self._number


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return simulate(CONFIG, out=tmp_path_factory.mktemp("multimodal") / "run", overrides=SMALL)


def test_six_sites_with_different_instruments_federate(whole: RunResult) -> None:
    assert whole.plan.mode == "multimodal" and len(whole.rounds) == 4
    assert all(len(entry.accepted) == 6 for entry in whole.rounds[1:])
    assert whole.metrics["loss"] < whole.rounds[0].metrics["loss"]
    assert {"persistence", "climatology", "anomaly persistence"} <= set(whole.baselines)
    assert whole.report.stat().st_size > 10_000
    sites = whole.rounds[-1].sites
    assert "only/spectrum/loss" in sites["earthlike"] and "only/spectrum/loss" not in sites["continents"]


def test_a_stopped_run_ends_with_the_same_bytes(whole: RunResult, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        simulate(CONFIG, out=tmp_path / "run", overrides=SMALL, observer=StopAfter(2))
    resumed = simulate(CONFIG, out=tmp_path / "run", overrides=SMALL, resume=True)
    assert resumed.model_path.read_bytes() == whole.model_path.read_bytes()


def test_a_liar_is_withstood_where_the_plan_says_so(tmp_path: Path) -> None:
    attack = ['participants.tilted land.attack.name="sign-flip"', "participants.tilted land.attack.scale=50"]
    robust = ["strategy.rule=geometric-median", "strategy.f=1", "strategy.trust.spectrum=['earthlike']"]
    lied = simulate(CONFIG, out=tmp_path / "lied", overrides=[*SMALL, *attack])
    withstood = simulate(CONFIG, out=tmp_path / "withstood", overrides=[*SMALL, *attack, *robust])
    assert withstood.metrics["loss"] < lied.metrics["loss"]
    assert withstood.metrics["loss"] < withstood.rounds[0].metrics["loss"]


def test_one_participant_is_the_centralised_case(tmp_path: Path) -> None:
    alone = train(CONFIG, out=tmp_path / "run", overrides=SMALL)
    assert [entry.accepted for entry in alone.rounds[1:]] == [("earthlike",)] * 3
    three = with_trainers(load_plan(CONFIG), 3)
    assert set(three.task.options["modalities"]) == {"earthlike", "continents", "fast ocean"}
    check_plan(three)


def test_the_mode_is_for_tasks_with_modalities() -> None:
    data = {**load_plan(CONFIG).to_dict(), "task": {"name": "planets"}, "model": {"name": "mlp"}}
    data["strategy"] = {"name": "FedAvg"}
    with pytest.raises(PlanError, match="tasks with modalities"):
        check_plan(load_plan(data))
