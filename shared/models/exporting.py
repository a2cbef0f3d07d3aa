"""Networks as ONNX files, each checked against torch by onnxruntime before it appears.

The exporter traces the network with symbolic sizes (torch.export), so that one file serves any batch and any grid that
its signature allows. The file's metadata holds the plan and whatever else the caller wants to travel with the weights.
"""

import json
import logging
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import Dim

from astrofed.shared.errors import AstrofedError, UserMistake
from astrofed.shared.files import write_atomically
from astrofed.shared.models.base import Model
from astrofed.shared.models.signature import Axis, Input

TOLERANCE = {"cpu": 1e-4, "cuda": 1e-2, "tensorrt": 2e-2}
"""Largest deviation from torch on a CPU over the output's root mean square; TF32 and FP16 have fewer digits."""
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
REPEATS = 7
PREFIX = "astrofed."


class ExportToolsMissing(UserMistake):
    """The packages that write and run ONNX files are not installed."""


class ProviderMissing(UserMistake):
    """An execution provider was asked for that this machine's onnxruntime doesn't have."""


class ExportedModelDiffers(AstrofedError):
    """The exported network gives other numbers than torch; no file was written."""


@dataclass(frozen=True)
class Check:
    """What onnxruntime made of the network on one set of sizes, by axis name."""

    sizes: Mapping[str, int]
    deviation: float  # largest, over the output's root mean square
    seconds: float  # median of one inference


@dataclass(frozen=True)
class Exported:
    """An ONNX file and how it was checked; the first check is on one sample of usual size."""

    path: Path
    size: int  # bytes
    opset: int
    provider: str  # "cpu", "cuda" or "tensorrt"
    threads: int
    checks: tuple[Check, ...]
    available: tuple[str, ...]  # onnxruntime's execution providers on this machine

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data for JSON."""
        checks = [{"sizes": dict(c.sizes), "deviation": c.deviation, "seconds": c.seconds} for c in self.checks]
        return {
            "onnx": str(self.path),
            "bytes": self.size,
            "opset": self.opset,
            "provider": self.provider,
            "threads": self.threads,
            "tolerance": TOLERANCE[self.provider],
            "checks": checks,
            "available_providers": list(self.available),
        }


def export_onnx(
    model: Model, path: Path, *, metadata: Mapping[str, str], provider: str | None = None, threads: int | None = None
) -> Exported:
    """Write a network as ONNX after onnxruntime has given the same numbers as torch on several sizes.

    Args:
        model: the network, of which nothing changes but that it is in evaluation mode afterwards.
        path: where the file appears, whole or not at all.
        metadata: text that travels in the file, under names with the prefix "astrofed.".
        provider: "cpu", "cuda" or "tensorrt"; by default the fastest that is installed.
        threads: threads of onnxruntime; by default as many as torch has.

    Raises:
        ExportToolsMissing, ProviderMissing, NoSignature, CannotWrite: see there.
        ExportedModelDiffers: a number is off by more than TOLERANCE.
    """
    available = _available()
    chosen = _choose(provider, available)
    inputs = model.eval().signature()
    data, opset = _serialise(model, inputs, metadata)
    count = threads or torch.get_num_threads()
    session = _session(data, chosen, count)
    checks = tuple(_check(model, session, inputs, sizes, seed) for seed, sizes in enumerate(_sizes(inputs)))
    worst = max(checks, key=lambda check: check.deviation)
    if not worst.deviation <= TOLERANCE[chosen]:
        raise ExportedModelDiffers(
            f"{path} was not written: with {dict(worst.sizes)} onnxruntime ({chosen}) differs from torch by "
            f"{worst.deviation:.3g} of the output's root mean square, more than {TOLERANCE[chosen]:g}"
        )
    write_atomically(path, data)
    return Exported(path, len(data), opset, chosen, count, checks, available)


def _available() -> tuple[str, ...]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it and says so less clearly
    except ImportError as error:
        raise ExportToolsMissing(
            f"export needs onnx, onnxscript and onnxruntime ({error.name} is missing): pip install 'astrofed[export]'"
        ) from error
    return tuple(onnxruntime.get_available_providers())


def _choose(provider: str | None, available: Sequence[str]) -> str:
    there = [name for name, chain in PROVIDERS.items() if chain[0] in available]
    if provider is None:
        return there[-1]
    if provider not in PROVIDERS:
        raise ProviderMissing(f"no execution provider {provider!r}; there are: {', '.join(PROVIDERS)}")
    if provider not in there:
        raise ProviderMissing(
            f"onnxruntime here has no {PROVIDERS[provider][0]} (it has {', '.join(available)}); install "
            f"onnxruntime-gpu and, for tensorrt, TensorRT, or take --provider {there[-1]}"
        )
    return provider


def _serialise(model: Model, inputs: Sequence[Input], metadata: Mapping[str, str]) -> tuple[bytes, int]:
    dims: dict[str, Any] = {}
    for axis in _free(inputs):
        base = Dim(axis.name)
        dims[axis.name] = base if axis.multiple == 1 else axis.multiple * base
    shapes = tuple(
        {at: dims[axis.name] for at, axis in enumerate(given.axes) if isinstance(axis, Axis)} for given in inputs
    )
    example = tuple(given.example({}, seed=0) for given in inputs)
    with _quiet():
        program = torch.onnx.export(model, example, dynamo=True, dynamic_shapes=shapes, verbose=False)
        assert program is not None
        for name, text in metadata.items():
            program.model.metadata_props[PREFIX + name] = text
        axes = {given.name: [axis if isinstance(axis, int) else axis.name for axis in given.axes] for given in inputs}
        program.model.metadata_props[PREFIX + "axes"] = json.dumps(axes)
        data: bytes = program.model_proto.SerializeToString()
        return data, program.model.opset_imports[""]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter tells its own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _session(data: bytes, provider: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=list(PROVIDERS[provider]))
    if session.get_providers()[0] != PROVIDERS[provider][0]:  # onnxruntime falls back silently
        raise ProviderMissing(
            f"onnxruntime has {PROVIDERS[provider][0]} but can't start it (it took {session.get_providers()[0]}); "
            "its libraries are missing or don't fit: mend them, or take --provider cpu"
        )
    return session


def _free(inputs: Sequence[Input]) -> list[Axis]:
    return list({axis.name: axis for given in inputs for axis in given.axes if isinstance(axis, Axis)}.values())


def _sizes(inputs: Sequence[Input]) -> list[dict[str, int]]:
    """One sample of usual size, the sizes traced, other ones, and the least."""
    free = _free(inputs)
    usual = {axis.name: axis.usual for axis in free}
    return [
        usual | ({"batch": 1} if "batch" in usual else {}),
        usual,
        {axis.name: axis.usual + axis.multiple for axis in free},
        {axis.name: axis.multiple for axis in free},
    ]


@torch.no_grad()
def _check(model: Model, session: Any, inputs: Sequence[Input], sizes: Mapping[str, int], seed: int) -> Check:
    tensors = [given.example(sizes, seed + 1) for given in inputs]
    expected = _flat(model(*tensors))
    feed = {node.name: tensor.numpy() for node, tensor in zip(session.get_inputs(), tensors, strict=True)}
    found: Sequence[NDArray[Any]] = session.run(None, feed)
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        session.run(None, feed)
        seconds.append(time.perf_counter() - began)
    return Check(dict(sizes), _deviation(expected, found), statistics.median(seconds))


def _flat(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [tensor for item in (output.values() if isinstance(output, Mapping) else output) for tensor in _flat(item)]


def _deviation(expected: Sequence[Tensor], found: Sequence[NDArray[Any]]) -> float:
    worst = 0.0
    for ours, theirs in zip(expected, found, strict=True):
        reference = ours.double().numpy()
        if reference.shape != theirs.shape:
            return float("inf")
        size = float(np.sqrt(np.mean(reference**2)))
        off = float(np.abs(reference - theirs).max()) / (size or 1.0)
        worst = max(worst, off) if np.isfinite(off) else float("inf")
    return worst
