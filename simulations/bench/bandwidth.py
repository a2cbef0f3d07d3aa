"""How fast this machine reads memory: sums over a buffer much larger than its caches, as vector instructions."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

BYTES = 400 << 20


def read_bandwidth(threads: int, repeats: int, size: int = BYTES) -> float:
    """Return bytes a second, the best of the repeats of two ways to read: as one stream, and as four at once.

    Args:
        threads: how many read at the same time, each its own part.
        repeats: of each way.
        size: bytes of the buffer.
    """
    buffer = np.ones(size // 8, np.int64)
    parts = np.array_split(buffer, threads)
    best = np.inf
    with ThreadPoolExecutor(threads) as pool:
        for read in (_one_stream, _four_streams):
            list(pool.map(read, [part[:8] for part in parts]))  # compiled before the clock starts
            for _ in range(repeats):
                start = time.perf_counter()
                total = sum(pool.map(read, parts))
                best = min(best, time.perf_counter() - start)
                if total != len(buffer):
                    raise AssertionError(f"the sum of {len(buffer)} ones came out as {total}")
    return float(buffer.nbytes / best)


@numba.njit(nogil=True, fastmath=True)
def total(values: Any) -> Any:
    """Return the sum of an array's values, in its own type and as vector instructions add."""
    found = values.dtype.type(0)
    for i in range(len(values)):
        found += values[i]
    return found


def _one_stream(values: NDArray[np.int64]) -> int:
    return int(_sum(values))


def _four_streams(values: NDArray[np.int64]) -> int:
    quarter = len(values) // 4
    return int(_sum_of_four(values, quarter)) + int(values[4 * quarter :].sum())


@numba.njit(nogil=True)
def _sum(values: Any) -> int:
    total = 0
    for i in range(len(values)):
        total += values[i]
    return total


@numba.njit(nogil=True)
def _sum_of_four(values: Any, quarter: int) -> int:
    a = b = c = d = 0
    for i in range(quarter):
        a += values[i]
        b += values[quarter + i]
        c += values[2 * quarter + i]
        d += values[3 * quarter + i]
    return a + b + c + d
