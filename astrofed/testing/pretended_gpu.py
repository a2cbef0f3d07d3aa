"""A GPU for machines without one: tensors that say "meta", compute on the CPU, and meet no tensor of the CPU.

As on a real GPU, an operation on tensors of both kinds is an error, except with single numbers of the CPU, and with
indices of the CPU; numpy can't see the pretended tensors. Unlike torch's fake tensors they hold numbers, so that what
comes out can be compared with what the CPU gives. They can't say "cuda", which torch's autograd has to know; "meta" is
a kind of device that every build has.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from astrofed.client.fitting import Pieces

GPU = torch.device("meta")
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)


class OnGpu(Tensor):
    """Numbers of the CPU that say that they are on the GPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        make: Any = Tensor._make_subclass
        made: OnGpu = make(cls, held, False, dispatch_device=True)
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGpu({self.held!r})"

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert meta device type tensor to numpy")

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees to tensors that are made on the GPU from nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.prim.device.default:
        return GPU
    flat, spec = tree_flatten((args, kwargs))
    ours = {id(each.held): each for each in flat if isinstance(each, OnGpu)}
    wanted = kwargs.get("device")
    if func not in _MOVES:
        _no_mixing(func, args, flat)
    bare = [each.held if isinstance(each, OnGpu) else each for each in flat]
    bare = [torch.device("cpu") if isinstance(each, torch.device) else each for each in bare]
    given, named = tree_unflatten(bare, spec)
    found = func(*given, **named)
    if func is torch.ops.aten.copy_.default:
        return args[0]
    on_gpu = bool(ours) if wanted is None else torch.device(wanted).type == "meta"

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, OnGpu) or not on_gpu:
            return value
        return ours[id(value)] if id(value) in ours else OnGpu(value)

    return tree_map(wrapped, found)


def _no_mixing(func: Any, args: Any, flat: list[Any]) -> None:
    tensors = [each for each in flat if isinstance(each, Tensor)]
    if not any(isinstance(each, OnGpu) for each in tensors):
        return
    for each in tree_flatten(args[:1])[0] if func in _INDEXED else tensors:
        if isinstance(each, Tensor) and not isinstance(each, OnGpu) and each.dim():
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, found meta and cpu")


@contextmanager
def pretended_gpu() -> Iterator[str]:
    """Give this process a GPU, and its name, for a block."""
    optimizers: Any = sys.modules[torch.optim.Optimizer.__module__]
    fused = [*optimizers._get_fused_kernels_supported_devices(), GPU.type]
    on_cpu = torch.tensor

    def tensor(data: Any, *, device: torch.device | str | None = None, **named: Any) -> Tensor:
        made = on_cpu(data, **named)
        return made if device is None else made.to(device)

    with (
        patch.object(torch, "tensor", tensor),  # which torch doesn't let modes see where the device is "meta"
        patch.object(optimizers, "_get_fused_kernels_supported_devices", lambda: list(fused)),
        patch.object(Pieces, "_free", lambda _: 2**30),
        _Factories(),  # type: ignore[no-untyped-call]
    ):
        yield str(GPU)
