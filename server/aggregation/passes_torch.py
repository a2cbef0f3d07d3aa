"""The passes over the updates on a GPU, or wherever torch computes: the same results as the compiled ones.

A block of all clients' values goes to the device at a time, as float64, so memory there is a few blocks and nothing
leaves float32's range. Values are taken as differences from one client before they are added up.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astrofed.server.aggregation.base import Floats, MeanAroundMedian, MeanOfRanks
from astrofed.server.aggregation.updates import Updates, flat, spans
from astrofed.shared.plan import PlanError

BLOCK_BYTES = 64 << 20  # of one block on the device


class TorchPasses:
    """`passes.distances`, `weighted_mean` and `order_statistic` on a device of torch's."""

    def __init__(self, device: str) -> None:
        """Use a device by torch's name for it, such as "cuda" or "cuda:1".

        Raises:
            PlanError: torch has no such device here.
        """
        try:
            self.device = torch.device(device)
            torch.zeros(1, dtype=torch.float64, device=self.device)
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise PlanError(
                f"strategy.device: {device!r} can't be used on this machine ({reason}); leave it out to use the CPU"
            ) from error

    def distances(self, updates: Updates) -> Floats:
        """Return the squared Euclidean distances (n, n) between all updates."""
        n = len(updates.replies)
        total = torch.zeros((n, n), dtype=torch.float64, device=self.device)
        for _, _, values in self._blocks(updates, range(n)):
            apart = torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist")
            total += apart * apart
        return np.asarray(total.cpu().numpy())

    def weighted_mean(
        self, updates: Updates, clients: Sequence[int], weights: Floats, result: Mapping[str, NDArray[Any]]
    ) -> None:
        """Write the weighted mean of some clients; weights sum to 1."""
        heaviest = int(np.argmax(weights))
        shares = torch.as_tensor(weights, dtype=torch.float64, device=self.device)
        for name, columns, values in self._blocks(updates, clients):
            centre = values[heaviest].clone()
            _write(result[name], columns, centre + shares @ (values - centre))

    def order_statistic(
        self,
        updates: Updates,
        clients: Sequence[int],
        reduction: MeanOfRanks | MeanAroundMedian,
        result: Mapping[str, NDArray[Any]],
        mixing: Floats | None = None,
        centre: int = -1,
        *,
        wide: bool = False,
    ) -> None:
        """Write an order statistic of each coordinate; arguments as for the compiled pass, `wide` at any time."""
        mixes = None if mixing is None else torch.as_tensor(mixing, dtype=torch.float64, device=self.device)
        for name, columns, values in self._blocks(updates, clients):
            if mixes is None:
                _write(result[name], columns, _reduced(values, reduction))
            else:
                middle = values[centre].clone()
                _write(result[name], columns, middle + _reduced(mixes @ (values - middle), reduction))

    def _blocks(self, updates: Updates, clients: Sequence[int]) -> Iterator[tuple[str, slice, Tensor]]:
        """Yield some clients' values (clients, columns) of each float array, block by block."""
        size = max(64, BLOCK_BYTES // 8 // len(clients))
        for name in updates.floats:
            for columns in spans(updates.reference[name].size, size):
                rows = np.stack([flat(updates.replies[client][name], columns) for client in clients])
                native = rows.astype(rows.dtype.newbyteorder("="), copy=False)
                yield name, columns, torch.from_numpy(native).to(self.device).to(torch.float64)


def _reduced(values: Tensor, reduction: MeanOfRanks | MeanAroundMedian) -> Tensor:
    """Return the order statistic (columns,) of values (rows, columns)."""
    ordered = values.sort(dim=0).values
    if isinstance(reduction, MeanOfRanks):
        chosen = ordered[reduction.first : reduction.stop]
        return chosen[0] + (chosen - chosen[0]).mean(dim=0)
    n, keep = len(ordered), reduction.keep
    low = ordered[(n - 1) // 2]
    median = (low + ordered[n // 2]) / 2
    below = (ordered[keep:] - median < median - ordered[: n - keep]).sum(dim=0)
    place = torch.arange(n, device=values.device)[:, None]
    inside = (place >= below) & (place < below + keep)
    return low + torch.where(inside, ordered - low, 0.0).sum(dim=0) / keep


def _write(array: NDArray[Any], columns: slice, values: Tensor) -> None:
    array.reshape(-1)[columns] = values.cpu().numpy()
