"""Where a model's weights lie: found once, so that they can be written and read without asking torch for each anew.

A round of a small model takes longer in `state_dict` than in its arithmetic. What was found is checked at each use: the
same modules, the same tensors, at the same places in memory. Anything else (hooks, other devices, transposed memory)
goes torch's own way.
"""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

_STOCK = ("state_dict", "_save_to_state_dict", "get_extra_state")


@dataclass(frozen=True, slots=True)
class Slot:
    """One parameter or buffer."""

    name: str  # in the state dictionary
    data: memoryview  # its bytes, as they lie in memory
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    holder: dict[str, Tensor | None]  # the module's parameters or buffers
    key: str  # there
    tensor: Tensor
    address: int
    size: torch.Size
    kind: torch.dtype


@dataclass(frozen=True, slots=True)
class _Part:
    """One module as it was: what it held."""

    modules: dict[str, nn.Module | None]
    children: tuple[nn.Module | None, ...]
    parameters: dict[str, Any]
    buffers: dict[str, Any]
    counts: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Found:
    """A model's modules and weights as they were."""

    parts: list[_Part]
    slots: list[Slot]
    parameters: list[nn.Parameter]


_known: "WeakKeyDictionary[nn.Module, _Found]" = WeakKeyDictionary()


def find_slots(model: nn.Module) -> list[Slot] | None:
    """Return where each entry of `model.state_dict()` lies, in its order; None where torch has to be asked."""
    found = _find(model)
    return None if found is None else found.slots


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """Return `list(model.parameters())`."""
    found = _find(model)
    return list(model.parameters()) if found is None else list(found.parameters)


def _find(model: nn.Module) -> _Found | None:
    known = _known.get(model)
    if known is not None and _still(known.parts, known.slots):
        return known
    found = _look(model)
    if found is None:
        _known.pop(model, None)
        return None
    _known[model] = _Found(*found, list(model.parameters()))
    return _known[model]


def _still(parts: list[_Part], slots: list[Slot]) -> bool:
    """Return whether the modules hold what they held, and the tensors lie where they lay."""
    for part in parts:
        if tuple(part.modules.values()) != part.children:
            return False
        if (len(part.parameters), len(part.buffers)) != part.counts:
            return False
    for slot in slots:
        tensor = slot.tensor
        if slot.holder.get(slot.key) is not tensor or tensor.data_ptr() != slot.address:
            return False
        if tensor.shape != slot.size or tensor.dtype is not slot.kind:
            return False
    return True


def _look(model: nn.Module) -> tuple[list[_Part], list[Slot]] | None:
    parts: list[_Part] = []
    slots: dict[str, Slot] = {}
    waiting = [("", model)]
    while waiting:
        prefix, module = waiting.pop()
        stock = all(getattr(type(module), name) is getattr(nn.Module, name) for name in _STOCK)
        if not stock or module._state_dict_hooks or module._state_dict_pre_hooks:
            return None
        parameters, buffers, children = module._parameters, module._buffers, tuple(module._modules.values())
        parts.append(_Part(module._modules, children, parameters, buffers, (len(parameters), len(buffers))))
        waiting += [(f"{prefix}{name}.", child) for name, child in module._modules.items() if child is not None]
        holders: tuple[dict[str, Any], ...] = (parameters, buffers)
        for holder in holders:
            for key, tensor in holder.items():
                if tensor is None or (holder is buffers and key in module._non_persistent_buffers_set):
                    continue
                slot = _slot(prefix + key, holder, key, tensor)
                if slot is None:
                    return None
                slots[slot.name] = slot
    names = list(model.state_dict())
    return (parts, [slots[name] for name in names]) if names and slots.keys() == set(names) else None


def _slot(name: str, holder: dict[str, Tensor | None], key: str, tensor: Tensor) -> Slot | None:
    plain = tensor.is_cpu and tensor.layout is torch.strided and tensor.is_contiguous() and type(tensor.data) is Tensor
    if not plain or tensor.is_neg() or tensor.is_conj():
        return None
    try:
        array = tensor.detach().numpy()
    except TypeError:  # bfloat16 and its like
        return None
    data = array.reshape(-1).view(np.uint8).data
    return Slot(
        name, data, array.dtype, array.shape, holder, key, tensor, tensor.data_ptr(), tensor.shape, tensor.dtype
    )
