"""Where a site's networks are computed: the operator's choice, never the plan's.

A model lies in the CPU's memory, where messages are written and read, and is on another device only while it trains or
is evaluated. There it answers where it is asked: inputs of the CPU are moved to it, and its outputs back. Training
moves whole batches, so that losses are taken on the device as well.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from astrofed.shared.errors import UserMistake
from astrofed.shared.seeds import torch_seeded

CPU = "cpu"
_HERE: AbstractContextManager[None] = nullcontext()


class DeviceUnavailable(UserMistake):
    """A device that this machine, or this build of torch, doesn't have."""


def check_devices(names: Sequence[str], key: str) -> None:
    """See that this machine has the devices, written "cpu" or "cuda:N"; `key` is where their names were given.

    Raises:
        DeviceUnavailable: one of them isn't there.
    """
    for name in names:
        if name == CPU:
            continue
        kind, _, number = name.partition(":")
        if kind != "cuda" or not number.isdecimal():
            raise DeviceUnavailable(f'{key}: {name!r} is no device; give "cpu", or "cuda:0" and so on')
        if not torch.cuda.is_available():
            why = "finds no usable GPU or driver" if torch.version.cuda else "was built without CUDA"
            raise DeviceUnavailable(
                f"{key}: {name!r} is not available, torch {torch.__version__} {why}; see `nvidia-smi`, install a build "
                'of torch with CUDA (pytorch.org/get-started), or give "cpu"'
            )
        if int(number) >= torch.cuda.device_count():
            there = ", ".join(f"cuda:{index}" for index in range(torch.cuda.device_count()))
            raise DeviceUnavailable(f'{key}: {name!r} is not there; give one of {there}, or "cpu"')
        # cuBLAS reads this once, and without it has no deterministic kernels for plans that ask for them.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.allow_tf32 = False  # single precision is what plans say that they mean by "fp32"


def placed(model: nn.Module, device: str) -> AbstractContextManager[None]:
    """Have a model on a device for a block; afterwards its weights lie where they lay, in the CPU's memory."""
    return _HERE if device == CPU else _moved(model, torch.device(device))


@contextmanager
def _moved(model: nn.Module, device: torch.device) -> Iterator[None]:
    held = [
        (module, name, tensor)
        for module in model.modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    ]
    there = {tensor: _on(tensor, device) for _, _, tensor in held}  # once where several modules share one
    hooks = [
        model.register_forward_pre_hook(_move_inputs, with_kwargs=True),
        model.register_forward_hook(_move_outputs),
    ]
    try:
        for module, name, tensor in held:
            setattr(module, name, there[tensor])
        yield
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for module, name, tensor in held:
                now = getattr(module, name)
                if isinstance(now, Tensor):
                    tensor.copy_(now)
                setattr(module, name, tensor)


def _on(tensor: Tensor, device: torch.device) -> Tensor:
    moved = tensor.detach().to(device)
    return nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved


def _move_inputs(model: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    device = device_of(model)
    asked = next((tensor.device for tensor in _tensors((given, named))), device)
    model.__dict__["_asked_on"] = asked
    return (given, named) if asked == device else (to_device(given, device), to_device(named, device))


def _move_outputs(model: nn.Module, _: object, output: Any) -> Any:
    asked: torch.device = model.__dict__.pop("_asked_on")
    return output if asked == device_of(model) else to_device(output, asked)


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's weights are; the CPU for one without weights."""
    return next((weight.device for weight in model.parameters()), torch.device(CPU))


def to_device(value: Any, device: torch.device) -> Any:
    """Return the same with all its tensors on a device: in tuples, lists, dictionaries and dataclasses."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(each, device) for each in value))
    if isinstance(value, tuple | list):
        return type(value)(to_device(each, device) for each in value)
    if isinstance(value, dict):
        return {key: to_device(each, device) for key, each in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if each.init}
        if any(True for _ in _tensors(held)):
            return dataclasses.replace(value, **{name: to_device(each, device) for name, each in held.items()})
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _tensors([getattr(value, each.name) for each in dataclasses.fields(value)])


@contextmanager
def seeded_on(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's global generators, the CPU's and the device's, for a block and put them back afterwards."""
    with torch_seeded(seed):
        if device.type != "cuda":
            yield
            return
        with torch.random.fork_rng([device]), torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
            yield
