"""What a site's training at production size comes to on a GPU: time and memory of a step, and how busy the GPU is.

Steps are taken by the site's own path, batches and physics included: the task trains a model that was placed on the
device. Where torch finds no GPU, each row says that it did not run.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from astrofed.client.devices import check_devices, placed
from astrofed.client.task import TrainInstruction
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import Plan, load_plan
from astrofed.simulations.bench.datacube_costs import PRODUCTION
from astrofed.simulations.bench.datacube_runs import TRAINED, Worlds, plan_of
from astrofed.simulations.bench.model_result import Part
from astrofed.simulations.bench.result import Target

DEVICE = "cuda:0"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "fp32, checkpointed": {"checkpoint": True},
    "bf16, checkpointed": {"precision": "bf16", "checkpoint": True},
}
STEPS, BATCH = 24, 8
FASTER, BUSY = 2.0, 0.9
KERNEL = "kernel"  # what the profiler calls the run of one
COLUMNS = ("computed as", "ms / step", "GPU busy", "peak MiB")
ABSENT = "did not run: no GPU here"


class Event(Protocol):
    """One entry of torch's profiler, as far as it matters here."""

    def activity_type(self) -> str: ...
    def start_ns(self) -> int: ...
    def duration_ns(self) -> int: ...


def gpu_costs(repeats: int) -> Part:
    """A site's training steps in each precision on a GPU, in turn; without one the rows say that they did not run."""
    wanted = (
        "bf16 takes at most half of the fp32 step's time",
        "training keeps the GPU busy for at least 90 % of the time",
    )
    if not torch.cuda.is_available():
        rows = tuple((name, ABSENT, ABSENT, ABSENT) for name in VARIANTS)
        return Part("On a GPU", COLUMNS, rows, tuple(Target(each, None, None) for each in wanted), "")
    check_devices([DEVICE], "device")
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    peaks, busy = {}, {}
    rounds = {name: training_of(production(settings, STEPS)) for name, settings in VARIANTS.items()}
    for name, (model, train) in rounds.items():
        with placed(model, DEVICE):
            train()  # to warm up
            torch.cuda.reset_peak_memory_stats()
            train()
            peaks[name] = torch.cuda.max_memory_allocated()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
                train()
                torch.cuda.synchronize()
            assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
            busy[name] = busy_seconds(profiler.profiler.kineto_results.events())
    for _ in range(repeats):
        for name, (model, train) in rounds.items():
            with placed(model, DEVICE):
                seconds[name].append(_timed(train))
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    shares = {name: busy[name] / medians[name] for name in VARIANTS}
    rows = tuple(
        (name, f"{1e3 * medians[name] / STEPS:.1f}", f"{shares[name]:.0%}", f"{peaks[name] / 2**20:.0f}")
        for name in VARIANTS
    )
    ratio = medians["fp32"] / medians["bf16"]
    targets = (
        Target(wanted[0], ratio, ratio >= FASTER),
        Target(wanted[1], shares["fp32"], shares["fp32"] >= BUSY),
    )
    note = (
        f"{torch.cuda.get_device_name()}; {PRODUCTION}, batches of up to {BATCH} samples of 2 epochs at T21. Busy: the "
        "time in which kernels ran, by torch's profiler, over the time of the same steps without it."
    )
    return Part("On a GPU", COLUMNS, rows, targets, note, {"seconds": seconds, "busy": busy, "peaks": peaks})


def production(training: Mapping[str, Any], steps: int, size: Mapping[str, Any] = PRODUCTION) -> Plan:
    """Return the plan of a site that takes `steps` steps a round at production size, with physics."""
    given = plan_of(0, 1, physics=True).to_dict()
    given["task"]["held_out_months"] = 1  # so that most samples have both epochs
    given["model"] |= size
    given["training"] |= {"batch_size": BATCH, "epochs": steps, "max_steps": steps, **training}
    return load_plan(given)


def training_of(plan: Plan) -> tuple[nn.Module, Callable[[], None]]:
    """Return a plan's model, and what trains it for one round at its first site."""
    worlds = Worlds(plan)
    task, model = worlds.tasks[TRAINED[0]], build_model(plan)

    def train() -> None:
        task.train(model, worlds.statistics, TrainInstruction(1, seed=0))

    return model, train


def busy_seconds(events: Iterable[Event]) -> float:
    """Return for how long at least one kernel ran; those that ran side by side count once, copies and ranges do not."""
    kernels = (each for each in events if each.activity_type() == KERNEL)
    spans = sorted((each.start_ns(), each.start_ns() + each.duration_ns()) for each in kernels)
    total = until = 0
    for start, end in spans:
        total += max(0, end - max(start, until))
        until = max(until, end)
    return total / 1e9


def _timed(train: Callable[[], None]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    train()
    torch.cuda.synchronize()
    return time.perf_counter() - began
