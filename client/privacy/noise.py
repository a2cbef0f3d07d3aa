"""Randomness for privacy: uniform and Gaussian numbers from a cryptographic generator (ChaCha20, keyed by the OS).

Which rows a step samples and the noise on its gradients must not be predictable, so neither comes from torch's or
numpy's generators. Gaussian numbers are made by Box and Muller's transform in float64, each the scaled sum of four
(Holohan & Braghin 2021, arXiv:2107.10138): inverting the floating-point arithmetic of one number to see through the
noise (Mironov 2012; Jin et al. 2022) becomes infeasible. What is added to them is rounded to the model's precision
afterwards. This is not exact sampling: tails end at 12 standard deviations, and the guarantee holds up to the rounding
of float64.
"""

import hashlib
import math
import secrets
import struct

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

SUMMED = 4


class Randomness:
    """A stream of unpredictable numbers; every instance has its own key. Not to be shared between threads."""

    def __init__(self) -> None:
        self._start(secrets.token_bytes(32))

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return [count] numbers in [0, 1), multiples of 2⁻⁵³."""
        stream = self._cipher.update(bytes(8 * count))
        return np.asarray((np.frombuffer(stream, dtype="<u8") >> np.uint64(11)) * 2.0**-53, dtype=np.float64)

    def normal(self, count: int) -> NDArray[np.float64]:
        """Return [count] standard normal numbers."""
        pairs = SUMMED // 2
        radius = np.sqrt(-2 * np.log1p(-self.uniform(pairs * count)))
        angle = 2 * math.pi * self.uniform(pairs * count)
        both = radius * (np.cos(angle) + np.sin(angle))
        total: NDArray[np.float64] = both.reshape(pairs, count).sum(axis=0)
        return total / math.sqrt(SUMMED)

    def _start(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()


class UnsafeSeededRandomness(Randomness):
    """The same stream from a seed, for tests that compare bits: whoever knows the seed can take the noise off again."""

    def __init__(self, seed: int) -> None:
        self._start(hashlib.sha256(struct.pack("<Q", seed)).digest())
