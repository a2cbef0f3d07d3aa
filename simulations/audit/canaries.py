"""Units made to be found again: the gradient of each points along a coordinate of its own, and nothing else does.

A canary's gradient is far longer than the clipping norm, so that it counts for as much as any unit may, and the change
of its coordinate over a training is all that the training ever says of it: no attacker can ask for more. The model is
layers of side × side weights side by side; canary number side · row + column has its coordinate there in every layer.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from astrofed.client.privacy import units
from astrofed.client.privacy.gradients import Gradients, Units
from astrofed.client.privacy.units import Chosen, Rows

LENGTH = 10.0  # of a sample's gradient in each layer, in clipping norms of 1


class Parallel(nn.Module):
    """Linear layers without bias, all on one input; weights begin at 0."""

    def __init__(self, side: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(side, side, bias=False) for _ in range(layers))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the layers' outputs [unit, sample, side] for `x` [unit, sample, side]."""
        return torch.stack([layer(x) for layer in self.layers]).sum(dim=0)


@dataclass(frozen=True)
class Canaries:
    """Who could be in the data, and who is."""

    side: int
    samples: int  # that each unit holds
    present: NDArray[np.bool_]  # [canary]

    def population(self) -> "Present":
        """Return the units, grouped as the planets' task groups its rows."""
        names = np.array([f"canary {number:06d}" for number in range(self.side**2)])
        owner = np.repeat(np.arange(self.side**2), self.samples)
        index, counted = units.padded(names[owner])
        row, column = np.divmod(owner, self.side)
        one = torch.eye(self.side)
        into, out = one[torch.from_numpy(column)][index], one[torch.from_numpy(row)][index]
        rows = Rows((into, out, counted.float()), _unit_loss)
        return Present(rows, self.present[owner[index[:, 0].numpy()]])

    def scores(self, change: list[Tensor]) -> NDArray[np.float64]:
        """Return [canary] the sum of the changes of its coordinates, given those of each layer."""
        total: NDArray[np.float64] = torch.stack([each.detach().double() for each in change]).sum(dim=0).numpy()
        return total.reshape(-1)


class Present:
    """A population of which some units are absent: they give no gradient, and are counted by nobody but the rate.

    So two data sets that differ by one unit have the same public number of units, as the accountants take them.
    """

    def __init__(self, rows: Rows, present: NDArray[np.bool_]) -> None:
        self._rows, self._present = rows, present

    def __len__(self) -> int:
        return len(self._rows)

    def gradients(self, model: nn.Module, chosen: Chosen) -> Iterator[Gradients]:
        """See `Population`."""
        return self._rows.gradients(model, chosen[self._present[chosen]])


def coins(count: int, seed: int) -> NDArray[np.bool_]:
    """Return [count] fair coins."""
    return np.random.default_rng(seed).random(count) < 0.5


def _unit_loss(model: nn.Module, batch: Units) -> Tensor:
    into, out, counted = batch
    samples: Tensor = -(model(into) * out).sum(dim=2) * LENGTH
    return ((samples * counted).sum(dim=1) / counted.sum(dim=1)).mean()
