"""Updates as the rules see them: n clients' changes of the global model, read block by block, never stacked whole.

Changes are taken in float64 from the received buffers as they lie, so that a model with large weights and small changes
loses nothing. A block fits the cache; beyond the replies, memory is one block of n rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astrofed.server.aggregation.base import Floats

Arrays = Mapping[str, NDArray[Any]]
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Block:
    """Some neighbouring coordinates of one array: the clients' changes there."""

    name: str
    columns: slice  # of the flattened array
    rows: Floats  # (clients, columns); overwritten by the next block


@dataclass(frozen=True)
class Updates:
    """Replies of one round about a global model; all have the model's names, shapes and dtypes, and are finite."""

    reference: Arrays
    replies: Sequence[Arrays]

    @property
    def floats(self) -> list[str]:
        """Names of the arrays that rules aggregate: float16, float32, float64."""
        return [name for name, array in self.reference.items() if array.dtype.kind == "f"]

    @property
    def others(self) -> list[str]:
        """Names of counters and flags (integers, booleans), which have no mean."""
        return [name for name, array in self.reference.items() if array.dtype.kind != "f"]

    def blocks(self, clients: Sequence[int]) -> Iterator[Block]:
        """Yield the changes of some clients, block by block through all float arrays."""
        size = max(64, BLOCK_BYTES // 8 // max(1, len(clients)))
        buffer = np.empty((len(clients), size))
        for name in self.floats:
            for columns in spans(self.reference[name].size, size):
                rows = buffer[:, : columns.stop - columns.start]
                old = flat(self.reference[name], columns)
                for row, client in zip(rows, clients, strict=True):
                    np.subtract(flat(self.replies[client][name], columns), old, out=row, dtype=np.float64)
                yield Block(name, columns, rows)


def spans(total: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` that cover range(total)."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def flat(array: NDArray[Any], columns: slice) -> NDArray[Any]:
    """Return a span of the array flattened in C order: a view where the memory allows it, else a copy of the span."""
    return array.reshape(-1)[columns] if array.flags.c_contiguous else array.flat[columns]
