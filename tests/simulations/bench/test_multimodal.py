"""The multi-modal benchmark's arithmetic, and one run of its plan, small."""

from pathlib import Path
from typing import Any

import pytest

from astrofed.shared.record import Round
from astrofed.simulations.bench.multimodal import ALL, MODALITIES, WORLDS, bench_plan, estimate, judge, lines
from astrofed.simulations.bench.result import this_machine
from astrofed.simulations.compatibility import check_plan

BASELINES = {"persistence": 0.7, "unseen/persistence": 0.7, "climatology": 0.6}


def entry(unseen: float, *, missing: float = 0.5, test_bin: int = 10) -> Round:
    own = {
        f"conformal/{kind}/{target}/{place}": 50.0
        for target in ("ts", "olr", "temperate", "icefree")
        for kind, place in (("calibration", 10), ("test", test_bin))
    }
    metrics = {"loss": 0.2, "without/cube/loss": missing}
    return Round(
        previous="",
        round=1,
        metrics=metrics,
        unseen={"loss": unseen, "without/cube/loss": missing},
        sites={"six worlds": own},
        seconds=1,
        bytes=1,
        checkpoint="",
        checkpoint_sha256="",
    )


def judged(whole: list[float], best: list[float], **options: Any) -> Any:
    runs = {name: [entry(v + 0.1) for v in best] for name in MODALITIES}
    runs["scalars"] = [entry(v) for v in best]
    runs[ALL] = [entry(v, **options) for v in whole]
    return judge(runs, BASELINES, {"seeds": len(whole)}, this_machine())


def test_the_gain_is_over_the_best_single_modality_by_seed() -> None:
    found = judged([0.3, 0.2], [0.4, 0.4])
    assert found.best_single == "scalars"
    assert found.gain.values == pytest.approx((0.25, 0.5)) and found.gain.mean == pytest.approx(0.375)
    assert [target.met for target in found.targets] == [True, False, True]  # every test score is covered: 100 %
    assert found.coverage.mean == 1.0
    assert "persistence" in "".join(lines(found)) and found.to_dict()["met"] is False


def test_what_is_missed_is_said() -> None:
    found = judged([0.39, 0.38], [0.4, 0.4], missing=0.9, test_bin=80)
    assert [target.met for target in found.targets] == [False, False, False]
    assert found.coverage.mean == 0.0


def test_intervals_are_students() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3.0 and found.half_width == pytest.approx(1.9633, abs=1e-3)


def test_its_plan_is_sound(tmp_path: Path) -> None:
    plan = bench_plan(MODALITIES, tmp_path, seed=1, epochs=60)
    check_plan(plan)
    assert plan.training.epochs * plan.rounds == 60 and len(WORLDS) == 6
