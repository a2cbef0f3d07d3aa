"""Replies as the rules see them: read where they lie, a block at a time, never stacked whole.

Two views of the same buffers. `blocks` hands out changes of the global model in float64, for any rule written in numpy.
`segments` hands out addresses, for compiled passes; what those can't read in place (float16, transposed or unaligned
memory) is copied a chunk at a time. Beyond the replies, memory is one block or chunk of n rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astrofed.server.aggregation.base import Floats
from astrofed.shared.array_forms import let_go, mapping

Arrays = Mapping[str, NDArray[Any]]
Integers = NDArray[np.int64]
BLOCK_BYTES = 1 << 20
MAPPED = 1 << 21  # columns after which memory that mirrors files is let go
NATIVE = (np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class Block:
    """Some neighbouring coordinates of one array: the clients' changes there."""

    name: str
    columns: slice  # of the flattened array
    rows: Floats  # (clients, columns); overwritten by the next block


@dataclass(frozen=True)
class Segment:
    """Arrays of one type, float32 or float64, as addresses; valid until the next segment is asked for."""

    dtype: np.dtype[Any]
    addresses: Integers  # (arrays, clients)
    sizes: Integers  # (arrays,)
    results: Integers  # (arrays,), where the new model's values go; empty where there is no result


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
                if columns.start // MAPPED != columns.stop // MAPPED:
                    self._let_go(name, clients)
            self._let_go(name, clients)

    def segments(self, clients: Sequence[int], result: Mapping[str, NDArray[Any]] | None = None) -> Iterator[Segment]:
        """Yield the values of some clients through all float arrays; what is written as their results goes to `result`.

        Arrays that every client holds in plain memory come first, all of one type together.
        """
        loose = []
        plain: dict[np.dtype[Any], list[str]] = {dtype: [] for dtype in NATIVE}
        for name in self.floats:
            arrays = [self.replies[client][name] for client in clients]
            dtype = arrays[0].dtype
            together = dtype in plain and all(array.dtype == dtype and _is_plain(array) for array in arrays)
            if together and (result is None or (result[name].dtype == dtype and _is_plain(result[name]))):
                plain[dtype].append(name)
            else:
                loose.append(name)
        for dtype, names in plain.items():
            if names:
                addresses = [[_address(self.replies[client][name]) for client in clients] for name in names]
                results = [] if result is None else [_address(result[name]) for name in names]
                sizes = [self.reference[name].size for name in names]
                yield Segment(dtype, *(np.array(part, np.int64) for part in (addresses, sizes, results)))
        for name in loose:
            yield from self._chunks(name, clients, result)

    def mappings(self) -> list[mmap]:
        """Return the memory of all replies that only mirrors files."""
        arrays = (reply[name] for reply in self.replies for name in self.floats)
        found = {id(each): each for each in map(mapping, arrays) if each is not None}
        return list(found.values())

    def _let_go(self, name: str, clients: Sequence[int]) -> None:
        for client in clients:
            let_go(self.replies[client][name])

    def _chunks(
        self, name: str, clients: Sequence[int], result: Mapping[str, NDArray[Any]] | None
    ) -> Iterator[Segment]:
        wide = any(self.replies[client][name].dtype.itemsize > 4 for client in clients)
        dtype = NATIVE[int(wide or self.reference[name].dtype.itemsize > 4)]
        size = max(64, BLOCK_BYTES // 8 // (len(clients) + 1))
        rows = np.empty((len(clients) + 1, size), dtype)
        addresses = np.array([_address(row) for row in rows], np.int64)
        for columns in spans(self.reference[name].size, size):
            width = columns.stop - columns.start
            for row, client in zip(rows, clients, strict=False):
                row[:width] = flat(self.replies[client][name], columns)
            yield Segment(dtype, addresses[None, :-1], np.array([width], np.int64), addresses[-1:])
            if result is not None:
                result[name].reshape(-1)[columns] = rows[-1, :width]


def spans(total: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` that cover range(total)."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def flat(array: NDArray[Any], columns: slice) -> NDArray[Any]:
    """Return a span of the array flattened in C order: a view where the memory allows it, else a copy of the span."""
    return array.reshape(-1)[columns] if array.flags.c_contiguous else array.flat[columns]


def _is_plain(array: NDArray[Any]) -> bool:
    return array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
