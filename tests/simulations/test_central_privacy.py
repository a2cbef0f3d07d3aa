"""A federation with differential privacy at the server: what the record says, hides, and keeps over a stop."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from astrofed.server.federation import Interrupted
from astrofed.server.privacy.accounting import FILE, AccountCopied, CentralAccount
from astrofed.server.privacy.participation import OPERATORS
from astrofed.server.record import LINES, read_record, verify_run
from astrofed.shared.plan import Plan, load_plan
from astrofed.shared.record import Round, Start
from astrofed.simulations.compatibility import check_plan
from astrofed.simulations.simulate import simulate


class StopsAfter:
    """Asks to stop after a round."""

    def __init__(self, last: int) -> None:
        self._last, self._done = last, 0

    def started(self, plan: Plan, start: Start) -> None: ...

    def round_done(self, entry: Round) -> None:
        self._done = entry.round

    def should_stop(self) -> bool:
        return self._done >= self._last


@pytest.fixture
def central(small: dict[str, Any]) -> dict[str, Any]:
    return {
        **small,
        "strategy": {"name": "private-mean"},
        "central_privacy": {"epsilon": 8.0, "delta": 0.01, "sampling_rate": 0.6, "clipping_norm": 0.1},
    }


def test_the_record_says_epsilon_and_names_nobody(tmp_path: Path, central: dict[str, Any]) -> None:
    central["participants"][0]["attack"] = {"name": "nan"}  # one is kept out wherever it is asked
    result = simulate(central, out=tmp_path / "run")
    spent = result.central_privacy
    assert spent is not None and 7.9 < spent.epsilon <= 8.0 and spent.charges == 4
    assert f"epsilon = {spent.epsilon:.4g}" in check_plan(load_plan(central))[0]
    assert result.to_dict()["central_privacy"]["epsilon"] == spent.epsilon
    for entry in result.rounds[1:]:
        assert not entry.accepted and not entry.weights and not entry.quarantined and not entry.train_metrics
        assert entry.bytes is None and entry.seconds is None and entry.skipped is None
    lines = (tmp_path / "run" / LINES).read_text()
    assert "not finite" not in lines
    told = [json.loads(line) for line in (tmp_path / "run" / OPERATORS).read_text().splitlines()]
    assert [line["round"] for line in told] == [1, 2, 3, 4]
    reasons = [item["reason"] for line in told for item in line["quarantined"]]
    asked = [len(line["accepted"]) + len(line["quarantined"]) for line in told]
    assert all("not finite" in reason for reason in reasons) and max(asked) <= 4
    assert verify_run(result.run).rounds == 5
    report = result.report.read_text()
    assert "who took part is not recorded" in report and "each participant as a whole" in report
    assert "differentially private" in report


def test_a_run_that_was_stopped_goes_on_with_what_it_has_spent(tmp_path: Path, central: dict[str, Any]) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        simulate(central, out=out, observer=StopsAfter(2))
    plan = load_plan(central)
    assert plan.central_privacy is not None
    before = read_record(out)[1][-1].central_privacy
    CentralAccount(out, plan.central_privacy, plan.rounds, before).charge(3)  # as if killed in round 3
    result = simulate(central, out=out, resume=True)
    spent = result.central_privacy
    assert before is not None and spent is not None
    assert spent.charges == 5 and before.epsilon < spent.epsilon <= 8.0
    assert spent.noise_multiplier > before.noise_multiplier
    assert len((out / FILE).read_text().splitlines()) == 5


def test_a_copied_run_releases_nothing_more(tmp_path: Path, central: dict[str, Any]) -> None:
    """Its sites draw nothing from the run's seed: noise and sampling would be fresh, and charged in one copy alone."""
    with pytest.raises(Interrupted):
        simulate(central, out=tmp_path / "run", observer=StopsAfter(2))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with pytest.raises(AccountCopied, match="neither would count the other's"):
        simulate(central, out=tmp_path / "copy", resume=True)
    assert len(read_record(tmp_path / "copy")[1]) == 3  # with round 0
    assert simulate(central, out=tmp_path / "run", resume=True).central_privacy is not None


def test_worlds_use_public_scales_under_central_privacy(tmp_path: Path) -> None:
    """Their pooled scales and ridge would be a release that nothing hides; see `test_conditions` for the refusal."""
    names = ("earthlike", "w2_fast_ocean")
    plan = {
        "name": "worlds",
        "rounds": 1,
        "task": {"name": "datacube"},
        "model": {"name": "datacube-net"},
        "training": {"max_steps": 1},
        "strategy": {"name": "private-mean"},
        "central_privacy": {"noise_multiplier": 1.0, "delta": 0.01},
        "engine": {"threads": 1},
        "participants": [{"name": name, "data": f"bundled:worlds/{name}"} for name in names],
    }
    result = simulate(plan, out=tmp_path / "run")
    assert result.central_privacy is not None and "ridge" not in result.baselines
