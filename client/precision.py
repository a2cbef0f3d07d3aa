"""Low precision, gradient checkpointing, deterministic kernels and profiles: how a site's steps are computed.

Only the network runs in low precision: losses and physics are taken of its output in single precision, where pressures
and their differences have digits enough.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from astrofed.client.devices import device_of
from astrofed.shared.errors import UserMistake
from astrofed.shared.files import cannot_write
from astrofed.shared.models.base import Model
from astrofed.shared.plan import Training

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PROFILE = "ASTROFED_PROFILE"
"""Set by a site's own operator, never by a plan: the folder that profiles of each round are written to."""
PROFILED_STEPS = 8


class CheckpointingUnsupported(UserMistake):
    """The plan asks for gradient checkpointing of a network that has no places for it."""


class LowPrecision(nn.Module):
    """A network whose forward runs under autocast and gives single precision."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, *given: Any) -> Any:
        """Call the network; floating-point outputs come back as float32."""
        with torch.autocast(device_of(self).type, dtype=self.dtype):
            return _single(self.model(*given))


def computed_as(model: nn.Module, training: Training) -> nn.Module:
    """Return the network as the plan's precision has it computed: the network itself in single precision."""
    return model if training.precision == "fp32" else LowPrecision(model, DTYPES[training.precision])


def scaler(training: Training, device: str) -> torch.amp.GradScaler | None:
    """Return what keeps fp16's small gradients from vanishing (Micikevicius et al. 2018), for a kind of device."""
    if training.precision != "fp16":
        return None
    return torch.amp.GradScaler(device, init_scale=2.0**10, growth_interval=200)


_NOTHING: AbstractContextManager[None] = nullcontext()  # which most rounds have, and small ones shall not wait for


def checkpointed(model: nn.Module, training: Training) -> AbstractContextManager[None]:
    """Recompute a network's activations in the backward pass while this lasts, where the plan asks for it.

    Raises:
        CheckpointingUnsupported: the network has no places for it.
    """
    return _checkpointed(model) if training.checkpoint else _NOTHING


@contextmanager
def _checkpointed(model: nn.Module) -> Iterator[None]:
    if not (isinstance(model, Model) and model.can_checkpoint):
        raise CheckpointingUnsupported(
            f"training.checkpoint = true: {type(model).__name__} has no places for gradient checkpointing (a model "
            "says so by `can_checkpoint`); leave the key out"
        )
    model.checkpointing = True
    try:
        yield
    finally:
        model.checkpointing = False


_deterministic = threading.Lock()
_holders = [0, False]  # rounds that run under deterministic kernels, and what was set before the first


def deterministic(training: Training) -> AbstractContextManager[None]:
    """Let torch take deterministic kernels only, where the plan asks for it; operations without one are an error."""
    return _deterministic_kernels() if training.deterministic else _NOTHING


@contextmanager
def _deterministic_kernels() -> Iterator[None]:
    with _deterministic:
        if _holders[0] == 0:
            _holders[1] = torch.are_deterministic_algorithms_enabled()
            torch.use_deterministic_algorithms(True)
        _holders[0] += 1
    try:
        yield
    finally:
        with _deterministic:
            _holders[0] -= 1
            if _holders[0] == 0:
                torch.use_deterministic_algorithms(bool(_holders[1]))


_profiler = threading.Lock()  # torch has one profiler for a process


class Profile:
    """torch's profiler over a round's first steps: a Chrome trace, a table of operators, and the memory's peak."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=kinds, profile_memory=True, record_shapes=True)
        self._left = PROFILED_STEPS
        self._profiler.__enter__()  # type: ignore[no-untyped-call]

    def step_done(self) -> None:
        """Count a step; after PROFILED_STEPS the profiler stops."""
        self._left -= 1
        if self._left == 0:
            self._profiler.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Write NAME.trace.json and NAME.txt into the folder.

        Raises:
            CannotWrite: the folder can't be written.
        """
        if self._left > 0:
            self._profiler.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._profiler.export_chrome_trace(str(self.folder / f"{self.name}.trace.json"))
            table = self._profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40)
            steps = PROFILED_STEPS - max(self._left, 0)
            head = f"{steps} steps; peak of memory allocated by operators: {peak_bytes(self._profiler) / 2**20:.1f} MiB"
            (self.folder / f"{self.name}.txt").write_text(f"{head}\n{table}\n", encoding="utf-8")
        except OSError as error:
            raise cannot_write(self.folder, error) from error


def profiling(round_number: int, seed: int) -> AbstractContextManager[Profile | None]:
    """Profile the round that begins, if the site's operator has set ASTROFED_PROFILE and no other round is profiled.

    Raises:
        CannotWrite: the folder can't be written.
    """
    folder = os.environ.get(PROFILE)
    if not folder or not _profiler.acquire(blocking=False):
        return _NOTHING
    return _profiled(Path(folder), f"round-{round_number:05d}-{seed:x}")


@contextmanager
def _profiled(folder: Path, name: str) -> Iterator[Profile]:
    """`_profiler` is held already, and released."""
    try:
        profile = Profile(folder, name)
        yield profile
        profile.close()
    finally:
        _profiler.release()


def peak_bytes(profiler: torch.profiler.profile) -> int:
    """Return the highest sum of what operators allocated less what was freed, from a finished profile with memory."""
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        held += event.nbytes()  # type: ignore[attr-defined]
        peak = max(peak, held)
    return peak


def _single(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float() if output.is_floating_point() else output
    if isinstance(output, dict):
        return {key: _single(value) for key, value in output.items()}
    if isinstance(output, (tuple, list)):
        return type(output)(_single(value) for value in output)
    return output
