"""The multi-modal benchmark's arithmetic, and that its plan is sound."""

from typing import Any

import pytest

from astrofed.shared.record import Round
from astrofed.simulations.bench.multimodal import (
    ALL,
    EPOCHS,
    MODALITIES,
    ROUNDS,
    bench_plan,
    coverage,
    gains,
    missing,
)
from astrofed.simulations.compatibility import check_plan

BASELINES = {"climatology": 0.6}
TARGETS = ("ts", "olr", "temperate", "icefree")


def entry(loss: float, *, without: float = 0.5, test_bin: int = 10) -> Round:
    own = {
        f"conformal/{kind}/{target}/{place}": 50.0
        for target in TARGETS
        for kind, place in (("calibration", 10), ("test", test_bin))
    }
    metrics = {"loss": loss, "without/cube/loss": without, **{f"rmse/{target}": 1.0 for target in TARGETS}}
    return Round(
        previous="",
        round=1,
        metrics=metrics,
        sites={"earthlike": own},
        seconds=1,
        bytes=1,
        checkpoint="",
        checkpoint_sha256="",
    )


def runs(all_: list[float], best: list[float]) -> dict[str, list[Round]]:
    found = {name: [entry(loss + 0.1) for loss in best] for name in MODALITIES}
    return {**found, "scalars": [entry(loss) for loss in best], ALL: [entry(loss) for loss in all_]}


def test_the_gain_is_over_the_best_single_modality_by_seed() -> None:
    found = gains(runs([0.3, 0.2], [0.4, 0.4]), BASELINES)
    assert found.data["gain"].mean == pytest.approx(0.375) and found.targets[0].met
    assert "than scalars alone" in found.targets[0].target
    assert not gains(runs([0.39, 0.38], [0.4, 0.4]), BASELINES).targets[0].met


@pytest.mark.parametrize(("without", "met"), [(0.5, True), (0.7, False)])
def test_doing_without_a_modality_is_held_against_the_climatology(without: float, met: bool) -> None:
    assert missing([entry(0.3, without=without)] * 2, BASELINES).targets[0].met is met


@pytest.mark.parametrize(("test_bin", "covered"), [(10, 1.0), (80, 0.0)])
def test_coverage_is_pooled_over_targets(test_bin: int, covered: float) -> None:
    found = coverage([entry(0.3, test_bin=test_bin)] * 2)
    assert found.targets[0].measured == covered and not found.targets[0].met


def test_too_few_scores_are_not_evaluable() -> None:
    few: Any = entry(0.3).model_copy(update={"sites": {"earthlike": {}}})
    assert coverage([few, few]).targets[0].met is None


def test_its_plan_is_sound() -> None:
    plan = bench_plan(MODALITIES, seed=1)
    check_plan(plan)
    assert plan.training.epochs * ROUNDS == EPOCHS
