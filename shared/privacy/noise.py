"""Randomness for privacy: uniform and Gaussian numbers from a cryptographic generator (ChaCha20, keyed by the OS).

Which rows a step samples and the noise on its gradients must not be predictable, so neither comes from torch's or
numpy's generators. Gaussian numbers are made in float64 by Box and Muller's transform of two uniform ones of 52 bits.

The last bits of a float64 noise show through what it is added to (Mironov 2012; Jin et al. 2022, arXiv:2112.05307).
So what is noisy leaves on a fixed grid, of which 4096 to 8192 steps are a standard deviation (`hidden`). Float64 is off
by about 2⁻⁴⁰ of such a step; rounding after the noise is added costs no privacy and next to no accuracy. This is not
exact sampling: tails end at 8.5 standard deviations (2⁻⁵² of the mass), and the probabilities of what leaves are off by
about 2⁻⁴⁰ for each number, 10⁻⁶ for a million weights together.
"""

import hashlib
import math
import secrets
import struct
from collections.abc import Sequence

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from torch import Tensor

GRID_BITS = 12
_BLOCK = 65536  # numbers that are made at once: most of what is held of them is within a core's own cache
_ZEROS = memoryview(bytes(8 * _BLOCK))
_ONE = np.uint64(0x3FF0000000000000)  # bits of the float64 1.0


class Randomness:
    """A stream of unpredictable numbers; every instance has its own key. Not to be shared between threads."""

    def __init__(self) -> None:
        self._start(secrets.token_bytes(32))

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return [count] numbers in [0, 1), multiples of 2⁻⁵²."""
        return self._uniform(np.empty(count, np.dtype("<u8")))

    def normal(self, count: int) -> NDArray[np.float64]:
        """Return [count] standard normal numbers."""
        found = np.empty(count)
        for start in range(0, count, _BLOCK):
            part = found[start : start + _BLOCK]
            part[:] = self._normal(len(part)).numpy()
        return found

    def hidden(self, values: Tensor, deviation: float) -> Tensor:
        """Return `values` with Gaussian noise of a standard deviation, on the grid and in their own type."""
        return self.all_hidden([values], deviation)[0]

    def all_hidden(self, values: Sequence[Tensor], deviation: float) -> list[Tensor]:
        """Return several tensors of one type as `hidden` does, in less time; they share their memory."""
        step = grid_step(deviation)
        found = torch.cat([each.reshape(-1) for each in values])
        exact = torch.empty(min(_BLOCK, len(found)), dtype=torch.float64)
        for start in range(0, len(found), _BLOCK):
            part = found[start : start + _BLOCK]
            noise = self._normal(len(part)).mul_(deviation / step)
            noise.add_(exact[: len(part)].copy_(part), alpha=1 / step)
            part.copy_(noise.round_().mul_(step))
        ends = np.cumsum([each.numel() for each in values]).tolist()
        return [found[end - each.numel() : end].view(each.shape) for end, each in zip(ends, values, strict=True)]

    def _normal(self, count: int) -> Tensor:
        """Return up to `_BLOCK` standard normal numbers, to be used before the next ones are asked for."""
        pairs = (count + 1) // 2
        numbers = torch.from_numpy(self._uniform(self._bits[: 2 * pairs]))
        radius, angle = numbers[:pairs], numbers[pairs:]
        radius.neg_().log1p_().mul_(-2).sqrt_()
        angle.mul_(2 * math.pi)
        torch.cos(angle, out=self._numbers[:pairs]).mul_(radius)
        torch.sin(angle, out=self._numbers[pairs : 2 * pairs]).mul_(radius)
        return self._numbers[:count]

    def _uniform(self, into: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Return numbers as `uniform` does, in the memory of `into`."""
        for start in range(0, len(into), _BLOCK):
            part = into[start : start + _BLOCK]
            self._cipher.update_into(_ZEROS[: 8 * len(part)], part.data.cast("B"))
        bits = into.astype(np.uint64, copy=False)
        bits >>= np.uint64(12)
        bits |= _ONE
        numbers: NDArray[np.float64] = bits.view(np.float64)
        numbers -= 1.0
        return numbers

    def _start(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
        self._bits = np.empty(_BLOCK, np.dtype("<u8"))
        self._numbers = torch.empty(_BLOCK, dtype=torch.float64)


def grid_step(deviation: float) -> float:
    """Return the distance of the grid's points for noise of a standard deviation."""
    return float(2.0 ** (math.floor(math.log2(deviation)) - GRID_BITS))


class UnsafeSeededRandomness(Randomness):
    """The same stream from a seed, for tests that compare bits: whoever knows the seed can take the noise off again."""

    def __init__(self, seed: int) -> None:
        self._start(hashlib.sha256(struct.pack("<Q", seed)).digest())
