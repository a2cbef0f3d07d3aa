"""Randomness for privacy: uniform and Gaussian numbers from a cryptographic generator (ChaCha20, keyed by the OS).

Which rows a step samples and the noise on its gradients must not be predictable, so neither comes from torch's or
numpy's generators. Gaussian numbers are made in float64 by Box and Muller's transform (`box_muller.py`).

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

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from torch import Tensor

GRID_BITS = 12
_BLOCK = 16384  # numbers that are made at once: what is held of them is within a core's own cache
_ZEROS = memoryview(bytes(8 * _BLOCK))
_ONE = np.uint64(0x3FF0000000000000)  # bits of the float64 1.0


class Randomness:
    """A stream of unpredictable numbers; every instance has its own key. Not to be shared between threads."""

    def __init__(self) -> None:
        self._start(secrets.token_bytes(32))

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return [count] numbers in [0, 1), multiples of 2⁻⁵²."""
        bits = np.empty(count, np.uint64)
        for start in range(0, count, _BLOCK):
            self._draw(bits[start : start + _BLOCK])
        bits >>= np.uint64(12)
        bits |= _ONE
        numbers: NDArray[np.float64] = bits.view(np.float64)
        numbers -= 1.0
        return numbers

    def normal(self, count: int) -> NDArray[np.float64]:
        """Return [count] standard normal numbers."""
        from astrofed.shared.privacy import box_muller

        found = np.empty(count + count % 2)
        for start in range(0, len(found), _BLOCK):
            part = found[start : start + _BLOCK]
            box_muller.fill_normal(self._draw(self._words[: len(part)]), part)
        return found[:count]

    def hidden(self, values: Tensor, deviation: float) -> Tensor:
        """Return `values` with Gaussian noise of a standard deviation, on the grid and in their own type."""
        found = values.detach().clone(memory_format=torch.contiguous_format)
        self.hide(found.view(-1), deviation)
        return found

    def hide(self, values: Tensor, deviation: float) -> None:
        """Do to `values` [number] in place what `hidden` does, in less memory."""
        from astrofed.shared.privacy import box_muller  # compiled, or read from the disk, when needed

        step = grid_step(deviation)
        for part in torch.split(values, _BLOCK):
            words = self._draw(self._words[: len(part) + len(part) % 2])
            box_muller.hide(words, self._numbers[: len(words)], part.numpy(), deviation / step, step)

    def _draw(self, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return up to `_BLOCK` words, filled with random bits."""
        self._cipher.update_into(_ZEROS[: words.nbytes], words.data.cast("B"))
        return words

    def _start(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
        self._words, self._numbers = np.empty(_BLOCK, np.uint64), np.empty(_BLOCK)


def grid_step(deviation: float) -> float:
    """Return the distance of the grid's points for noise of a standard deviation."""
    return float(2.0 ** (math.floor(math.log2(deviation)) - GRID_BITS))


class KeyedRandomness(Randomness):
    """The same stream from a secret key [32 bytes], for those who share it; each key is for one use."""

    def __init__(self, key: bytes) -> None:
        self._start(key)


class UnsafeSeededRandomness(Randomness):
    """The same stream from a seed, for tests that compare bits: whoever knows the seed can take the noise off again."""

    def __init__(self, seed: int) -> None:
        self._start(hashlib.sha256(struct.pack("<Q", seed)).digest())
