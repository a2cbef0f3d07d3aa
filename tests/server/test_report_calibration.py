"""The report's uncertainty section: what sites counted is pooled, and nothing else is believed."""

from pathlib import Path
from typing import Any

import pytest

from astrofed.server.report_calibration import Calibration, conformal_counts, fewer_modalities, reliability_plot
from astrofed.server.report_calibration import calibration as calibration_of
from astrofed.server.report_run import Run
from astrofed.shared.plan import load_plan
from astrofed.shared.record import Round, Start

PLAN: dict[str, Any] = {
    "name": "report",
    "task": {"name": "surrogate"},
    "model": {"name": "surrogate"},
    "participants": [
        {"name": "a", "data": "x"},
        {"name": "b", "data": "x"},
        {"name": "c", "data": "x", "role": "evaluate"},
    ],
}
CURVE = {f"reliability/{level}": level / 100 for level in range(10, 100, 10)}


def run(sites: dict[str, dict[str, float]], metrics: dict[str, float], unseen: dict[str, float] | None = None) -> Run:
    start = Start(previous="", time="", versions={}, engine="", parameters=1, enrolled=(), refused=())
    entry = Round(
        previous="",
        round=1,
        metrics=metrics,
        unseen=unseen or {},
        sites=sites,
        seconds=1,
        bytes=1,
        checkpoint="",
        checkpoint_sha256="",
    )
    return Run(load_plan(PLAN), start, (entry,), "")


def counts(kind: str, bins: dict[int, int]) -> dict[str, float]:
    return {f"conformal/{kind}/ts/{b}": float(n) for b, n in bins.items()}


def test_sites_are_pooled_and_the_unseen_world_is_not() -> None:
    sites = {
        "a": {**CURVE, **counts("calibration", {10: 30}), **counts("test", {10: 20, 50: 5}), "conformal/coverage": 0.8},
        "b": {**CURVE, **counts("calibration", {20: 30}), **counts("test", {20: 25})},
        "c": {**CURVE, **counts("calibration", {139: 500}), **counts("test", {139: 500})},
    }
    found = calibration_of(run(sites, CURVE))
    assert found is not None
    ts = found.pooled[0]
    assert ts.target == "ts" and ts.pooled is not None
    assert (ts.pooled.calibration, ts.pooled.test) == (60, 50)
    assert ts.pooled.coverage == pytest.approx(45 / 50) and found.coverage == pytest.approx(0.9)
    assert all(row.pooled is None for row in found.pooled[1:])  # nothing was counted: not evaluable
    assert [(site.name, site.unseen, site.conformal) for site in found.sites] == [
        ("a", False, 0.8),
        ("b", False, None),
        ("c", True, None),
    ]
    assert len(found.curve) == 9


def test_other_tasks_have_none() -> None:
    assert calibration_of(run({}, {"loss": 1.0})) is None
    assert fewer_modalities(run({}, {"loss": 1.0})) == ()


def test_what_is_no_count_is_left_out() -> None:
    strange = {
        "conformal/test/ts/1": 3.0,
        "conformal/test/ts/x": 9.0,
        "conformal/test/ts/2": -4.0,
        "conformal/test/olr/1": 1.0,
    }
    assert conformal_counts(strange, "test", "ts") == {1: 3}


def test_errors_with_fewer_modalities_stand_side_by_side() -> None:
    found = fewer_modalities(run({}, {"only/cube/loss": 0.5, "loss": 0.3}, {"only/cube/loss": 0.7}))
    assert found == (("only cube", 0.5, 0.7),)


def test_the_plot_shows_the_curve() -> None:
    text = str(reliability_plot(Calibration((), (), None, ((0.5, 0.25), (0.9, 2.0)))))
    assert "polyline" in text and text.count("<line") >= 6
    points = text.split('points="')[1].split('"')[0].split()
    assert len(points) == 4
    assert float(points[2].split(",")[1]) == 12.0  # beyond 1 is drawn at 1


def test_the_whole_report_has_the_section(tmp_path: Path) -> None:
    from astrofed.simulations.simulate import simulate

    small = {"belts": 8, "sectors": 2}
    plan = {
        **PLAN,
        "mode": "multimodal",
        "task": {"name": "surrogate", **small},
        "model": {"name": "surrogate", "width": 8, "heads": 1, "depth": 1},
        "participants": [{"name": "a", "data": "bundled:worlds/earthlike"}],
    }
    page = simulate(plan, out=tmp_path / "run").report.read_text()
    assert "<h2>Uncertainty</h2>" in page and "With fewer modalities" in page and "only spectrum" in page
