"""What a training step and an inference of the datacube network cost: physics, checkpointing, ONNX."""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from astrofed.client.precision import peak_bytes
from astrofed.client.tasks.datacube_batches import stack
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.base import build_model
from astrofed.shared.models.datacube_layout import SIGMA, DatacubeLayout
from astrofed.shared.models.datacube_net import DatacubeNet
from astrofed.shared.models.exporting import export_onnx
from astrofed.simulations.bench.datacube_runs import TRAINED, Worlds, plan_of
from astrofed.simulations.bench.model_result import Part
from astrofed.simulations.bench.result import Target

PRODUCTION: dict[str, Any] = {"base_features": 64, "coarse_features": 96, "depth": 4}
BUDGET = {"physics": 0.15, "memory": 0.5, "time": 0.35, "inference": 0.3}


def physics_costs(repeats: int) -> Part:
    """A step on a real world with physics (fixers and loss) beside the same step without, in turn."""
    with_, without = (Worlds(plan_of(0, 1, physics=physics)) for physics in (True, False))
    steps = {}
    for name, worlds in (("with physics", with_), ("without", without)):
        task, model = worlds.tasks[TRAINED[0]], build_model(worlds.plan)
        scales = task.scales(worlds.statistics)
        batch = stack(task.world, task.samples_to_train_on()[:1], scales)
        loss = task.loss(scales)
        steps[name] = _step(model, lambda model=model, loss=loss, batch=batch: loss(model, batch))  # type: ignore[misc]
    times = in_turn(steps, repeats)
    share = statistics.median(a / b - 1 for a, b in zip(times["with physics"], times["without"], strict=True))
    rows = tuple((name, f"{1e3 * statistics.median(each):.1f}") for name, each in times.items())
    target = Target("physics terms cost at most 15 % of a training step", share, share <= BUDGET["physics"])
    note = "Fixers for mass and hydrostatic balance and a loss term for continuity, gradients included; CPU seconds."
    return Part("Physics in a training step", ("step", "ms"), rows, (target,), note, {"seconds": times})


def checkpointing_costs(repeats: int, *, quick: bool) -> Part:
    """Peak memory and time of a step with and without gradient checkpointing, at production size."""
    layout = DatacubeLayout(months_in=4)
    size = PRODUCTION | ({"base_features": 32, "coarse_features": 48} if quick else {})
    model = DatacubeNet(layout, **size)
    state, forcing = world_inputs(model)
    steps, peaks = {}, {}
    for name, on in (("kept", False), ("recomputed", True)):
        step = _checkpointed(model, on, _step(model, lambda: model(state, forcing).square().mean()))
        step()
        peaks[name] = memory_of(model, step)
        steps[name] = step
    times = in_turn(steps, repeats)
    slower = statistics.median(a / b - 1 for a, b in zip(times["recomputed"], times["kept"], strict=True))
    less = 1 - peaks["recomputed"] / peaks["kept"]
    rows = tuple((name, f"{peaks[name] / 2**20:.1f}", f"{1e3 * statistics.median(times[name]):.0f}") for name in steps)
    targets = (
        Target("checkpointing cuts peak activation memory by at least 50 %", less, less >= BUDGET["memory"]),
        Target("at no more than 35 % more time", slower, slower <= BUDGET["time"]),
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    note = f"{size}, {parameters} parameters, one world of 2 epochs at T21; memory that operators allocate in a step."
    return Part("Gradient checkpointing", ("activations", "peak MiB", "CPU ms"), rows, targets, note,
                {"peaks": peaks, "seconds": times})  # fmt: skip


def inference_costs() -> Part:
    """One full world through onnxruntime on two threads, after the export's own checks."""
    model = build_model(plan_of(0, 1, physics=False))
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = export_onnx(model, Path(folder) / "net.onnx", metadata={}, provider="cpu", threads=2)
        except UserMistake as error:
            target = Target("inference of one full world takes at most 0.3 s on two cores", None, None)
            return Part("Inference", ("runtime",), (), (target,), str(error))
    check = done.checks[0]
    sizes = ", ".join(f"{name} {size}" for name, size in check.sizes.items())
    target = Target(
        "inference of one full world takes at most 0.3 s on two cores",
        check.seconds,
        check.seconds <= BUDGET["inference"],
    )
    rows = (("onnxruntime, 2 threads", sizes, f"{1e3 * check.seconds:.1f}", f"{check.deviation:.1e}"),)
    return Part("Inference", ("runtime", "sizes", "ms", "deviation from torch"), rows, (target,), "", done.to_dict())


def world_inputs(model: DatacubeNet) -> tuple[Tensor, Tensor]:
    """Return normal numbers of the shape of one world's state and forcing, with levels from top to ground."""
    state, forcing = (given.example({"batch": 1}, seed=0) for given in model.signature())
    forcing[:, SIGMA] = torch.linspace(0.04, 0.98, forcing.shape[3])[:, None, None]
    return state, forcing


def in_turn(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, Sequence[float]]:
    """Return CPU seconds of each step, run one after the other `repeats` times after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            began = time.process_time()
            step()
            if turn:
                times[name].append(time.process_time() - began)
    return {name: tuple(each) for name, each in times.items()}


def memory_of(model: nn.Module, step: Callable[[], object]) -> int:
    """Return the peak of what the operators of a step allocate on the CPU, bytes."""
    for parameter in model.parameters():
        parameter.grad = None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    return peak_bytes(profiler)


def _step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], object]:
    def run() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        loss().backward()  # type: ignore[no-untyped-call]

    return run


def _checkpointed(model: DatacubeNet, on: bool, step: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        model.checkpointing = on
        step()
        model.checkpointing = False

    return run
