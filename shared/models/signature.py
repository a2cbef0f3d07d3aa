"""What a network's forward takes: the axes of each tensor by name, so that it can be exported and tried unseen."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """An axis whose size may vary: its name, a usual size (at least 2), and what sizes are multiples of."""

    name: str
    usual: int
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.usual < 2 or self.multiple < 1 or self.usual % self.multiple:
            raise ValueError(f"axis {self.name!r}: {self.usual} must be at least 2 and a multiple of {self.multiple}")


@dataclass(frozen=True)
class Input:
    """One tensor of a network's forward, by its argument's name; a number among the axes is a size that is fixed."""

    name: str
    axes: tuple[Axis | int, ...]
    dtype: torch.dtype = torch.float32

    def example(self, sizes: Mapping[str, int], seed: int) -> Tensor:
        """Return a tensor of the given sizes by axis name (usual ones where none is given): normal numbers, or ones."""
        shape = [axis if isinstance(axis, int) else sizes.get(axis.name, axis.usual) for axis in self.axes]
        if not self.dtype.is_floating_point:
            return torch.ones(shape, dtype=self.dtype)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=self.dtype)
