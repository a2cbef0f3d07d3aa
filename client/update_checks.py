"""What is checked of an update before it may leave: its arrays are the global model's, finite, and not too far from it.

Without copies of the model: one pass for whether it is finite, and one, in blocks that fit a core's cache, for length.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from torch import Tensor, nn

from astrofed.shared.arrays import view
from astrofed.shared.slots import Slot, find_slots

_BLOCK = 32768  # numbers subtracted at once
_SMALL = 4096  # numbers that are looked at one by one
Layout = tuple[tuple[str, torch.Size, torch.dtype], ...]  # (name, shape, type) of each array, in the model's order


@dataclass(frozen=True)
class Form:
    """What a model is made of: its arrays, and where they lay when that was looked at."""

    layout: Layout
    slots: list[Slot] | None

    @classmethod
    def of(cls, model: nn.Module) -> "Form":
        """Return a model's form."""
        return cls(layout(model.state_dict()), find_slots(model))

    def fits(self, model: nn.Module) -> bool:
        """Say whether a model, the same or another, has these arrays still."""
        slots = find_slots(model)
        return (slots is not None and slots is self.slots) or layout(model.state_dict()) == self.layout


def layout(state: Mapping[str, Tensor]) -> Layout:
    """Return names, shapes and types of a model's state."""
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in state.items())


def is_finite(model: nn.Module) -> bool:
    """Say whether all numbers of a model's state are finite."""
    slots = find_slots(model)
    if slots is None:
        return all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())
    return all([slot.dtype.kind not in "fc" or _finite(np.frombuffer(slot.data, slot.dtype)) for slot in slots])


def update_norm(model: nn.Module, sent: ArrayRecord) -> float:
    """Return the Euclidean length, over all arrays, of a model's state minus the global model that was sent."""
    total, buffer = 0.0, np.empty(_BLOCK)
    for name, tensor in model.state_dict().items():
        new, old = tensor.detach().cpu().numpy().reshape(-1), view(sent[name], name).reshape(-1)
        for start in range(0, new.size, _BLOCK):
            part = buffer[: min(_BLOCK, new.size - start)]
            np.subtract(new[start : start + _BLOCK], old[start : start + _BLOCK], out=part, casting="same_kind")
            total += float(np.dot(part, part))
    return math.sqrt(total)


def _finite(flat: NDArray[Any]) -> bool:
    """Large arrays are squared and added: only where a number isn't finite, or squares overflow, neither is the sum."""
    if flat.size > _SMALL:
        with np.errstate(over="ignore", invalid="ignore"):
            if math.isfinite(abs(np.dot(flat, flat))):
                return True
    return bool(np.isfinite(flat).all())
