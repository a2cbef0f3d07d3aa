"""What is checked of an update before it may leave: its arrays are the global model's, finite, and not too far from it.

Without copies of the model: one pass for whether it is finite, and one, in blocks that fit a core's cache, for length.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from astrofed.shared.arrays import view
from astrofed.shared.slots import find_slots

_BLOCK = 32768  # numbers subtracted at once
Layout = tuple[tuple[str, torch.Size, torch.dtype], ...]  # (name, shape, type) of each array, in the model's order


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers by name, as `state_dict` does, mostly without its cost."""
    slots = find_slots(model)
    return dict(model.state_dict()) if slots is None else {slot.name: slot.tensor for slot in slots}


def layout(state: Mapping[str, Tensor]) -> Layout:
    """Return names, shapes and types of a model's state."""
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in state.items())


def is_finite(state: Mapping[str, Tensor]) -> bool:
    """Say whether all numbers of a model's state are finite."""
    return all(_finite(tensor) for tensor in state.values() if tensor.is_floating_point() or tensor.is_complex())


def update_norm(state: Mapping[str, Tensor], sent: ArrayRecord) -> float:
    """Return the Euclidean length, over all arrays, of a model's state minus the global model that was sent."""
    total, buffer = 0.0, np.empty(_BLOCK)
    for name, tensor in state.items():
        new, old = tensor.detach().cpu().numpy().reshape(-1), view(sent[name], name).reshape(-1)
        for start in range(0, new.size, _BLOCK):
            part = buffer[: min(_BLOCK, new.size - start)]
            np.subtract(new[start : start + _BLOCK], old[start : start + _BLOCK], out=part, casting="same_kind")
            total += float(np.dot(part, part))
    return math.sqrt(total)


def _finite(tensor: Tensor) -> bool:
    if tensor.is_contiguous() and tensor.is_floating_point():
        flat = tensor.detach().view(-1)
        if math.isfinite(float(torch.dot(flat, flat))):  # not so where a number isn't, or where squares are too large
            return True
    return bool(torch.isfinite(tensor).all())
