"""What can be told of the GPU bench without a GPU: its rows say so, the steps are the site's own, and shares add up."""

from dataclasses import dataclass

import pytest
import torch

from astrofed.shared.models.datacube_net import DatacubeNet
from astrofed.simulations.bench import gpu_costs as bench
from astrofed.simulations.bench.datacube_costs import PRODUCTION


@dataclass(frozen=True)
class Entry:
    """An event of the profiler."""

    kind: str
    start: int
    duration: int

    def activity_type(self) -> str:
        return self.kind

    def start_ns(self) -> int:
        return self.start

    def duration_ns(self) -> int:
        return self.duration


def test_without_a_gpu_every_row_and_target_says_that_it_did_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    part = bench.gpu_costs(3)
    assert [row[0] for row in part.rows] == list(bench.VARIANTS)
    assert all(cell == "did not run: no GPU here" for row in part.rows for cell in row[1:])
    assert [target.met for target in part.targets] == [None, None]


def test_kernels_side_by_side_count_once_and_copies_and_ranges_do_not() -> None:
    second = 10**9
    events = [
        Entry("kernel", 4 * second, second),
        Entry("kernel", 0, second),
        Entry("kernel", second // 2, second),  # beside the one before, on another stream
        Entry("kernel", second // 4, second // 4),  # within the first
        Entry("gpu_memcpy", 2 * second, second),
        Entry("gpu_user_annotation", 0, 9 * second),
        Entry("cpu_op", 0, 9 * second),
    ]
    assert bench.busy_seconds(events) == pytest.approx(2.5)
    assert bench.busy_seconds([]) == 0


def test_the_profiler_here_tells_kinds_apart() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        torch.ones(2).add_(1)
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = profiler.profiler.kineto_results.events()
    assert "cpu_op" in {event.activity_type() for event in events} and bench.busy_seconds(events) == 0


@pytest.mark.parametrize("variant", bench.VARIANTS)
def test_a_variant_is_the_sites_own_training(variant: str) -> None:
    plan = bench.production(bench.VARIANTS[variant], 1, {"base_features": 8, "coarse_features": 8, "depth": 1})
    model, train = bench.training_of(plan)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train()
    assert isinstance(model, DatacubeNet)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_production_is_the_size_that_checkpointing_is_measured_at() -> None:
    plan = bench.production({"precision": "bf16"}, 4)
    assert {key: plan.model.options[key] for key in PRODUCTION} == PRODUCTION
    assert (plan.training.precision, plan.training.max_steps, plan.physics.weights) == (
        "bf16", 4, {"mass-continuity": 0.2},
    )  # fmt: skip
