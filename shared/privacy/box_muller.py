"""Standard normal numbers from random bits (Box & Muller 1958), compiled to vector instructions.

Of each two words of 64 bits come two numbers. The first word's upper 52 bits are a uniform number u in [0, 1) and give
the radius √(-2 ln(1 - u)). The second word's upper 52 bits give an angle within a quarter turn, its lowest two bits
which quarter. Logarithm, sine and cosine are series that are exact to float64's last places: torch and numpy call
theirs one after the other, which takes more than twice the time.
"""

import math

import numpy as np
from numpy.typing import NDArray

from astrofed.shared.compiling import FunctionT, compiled

PIECE = 512  # pairs at a time, so that what is held of them stays in the first cache
_MANTISSA, _ONE = np.uint64(0x000FFFFFFFFFFFFF), np.uint64(0x3FF0000000000000)  # of a float64; the bits of 1.0
_UNUSED, _EXPONENT, _BIAS = np.uint64(12), np.uint64(52), 1023
_SWAPS, _TURNS = np.uint64(1), np.uint64(2)  # bits of the second word
_LN_2, _SQRT_2, _QUARTER = math.log(2), math.sqrt(2), math.pi / 2
_LOG = tuple(1 / n for n in range(21, 1, -2))  # of artanh: z/3 + z²/5 + …
_SIN = tuple((-1) ** n / math.factorial(2 * n + 1) for n in range(7, 0, -1))
_COS = tuple((-1) ** n / math.factorial(2 * n) for n in range(8, 0, -1))


def vectorised(function: FunctionT) -> FunctionT:
    """Compile with leave to fuse products and sums, and without errors for division by zero: both hinder vectors."""
    return compiled(function, fastmath={"contract"}, error_model="numpy")


@vectorised
def fill_normal(bits: NDArray[np.uint64], into: NDArray[np.float64]) -> None:
    """Write standard normal numbers into `into` [number]; `bits` [word] are as many, an even number, and are lost.

    The pair of words (i, half + i) gives the numbers (i, half + i).
    """
    half = len(bits) // 2
    held = np.empty(PIECE, np.uint64)
    exponent = np.empty(PIECE)
    for start in range(0, half, PIECE):
        stop = min(start + PIECE, half)
        _radii(bits[start:stop], held, exponent, into[start:stop])
        _around(bits[half + start : half + stop], held, into[start:stop], into[half + start : half + stop])


@vectorised
def hide(
    bits: NDArray[np.uint64], normal: NDArray[np.float64], values: NDArray[np.floating], scale: float, step: float
) -> None:
    """Add normal numbers times `scale` to `values` [number] in units of `step`, and round to whole steps.

    `bits` [word] and `normal` [word], as many or one more, are what is worked in.
    """
    fill_normal(bits, normal)
    for i in range(len(values)):
        values[i] = np.rint(values[i] / step + normal[i] * scale) * step


@vectorised
def _radii(
    words: NDArray[np.uint64], held: NDArray[np.uint64], exponent: NDArray[np.float64], into: NDArray[np.float64]
) -> None:
    """Write √(-2 ln x) for x in (0, 1] made of each word; loops are apart where one array is seen in two ways."""
    number = held.view(np.float64)
    for i in range(len(words)):
        held[i] = (words[i] >> _UNUSED) | _ONE
    for i in range(len(words)):
        into[i] = 2.0 - number[i]
    drawn = into.view(np.uint64)
    for i in range(len(words)):
        held[i] = (drawn[i] & _MANTISSA) | _ONE
        exponent[i] = np.float64(np.int64(drawn[i] >> _EXPONENT) - _BIAS)
    for i in range(len(words)):  # x = 2^e m with m in (√½, √2]; ln m = 2 artanh((m - 1) / (m + 1))
        large = number[i] > _SQRT_2
        m = 0.5 * number[i] if large else number[i]
        e = exponent[i] + 1.0 if large else exponent[i]
        s = (m - 1.0) / (m + 1.0)
        z, series = s * s, 0.0
        for factor in _LOG:
            series = (series + factor) * z
        into[i] = math.sqrt(-2.0 * (e * _LN_2 + 2.0 * s * (1.0 + series)))


@vectorised
def _around(
    words: NDArray[np.uint64], held: NDArray[np.uint64], first: NDArray[np.float64], second: NDArray[np.float64]
) -> None:
    """Turn radii in `first` into the two coordinates at angles made of each word."""
    number = held.view(np.float64)
    for i in range(len(words)):
        held[i] = (words[i] >> _UNUSED) | _ONE
    for i in range(len(words)):
        angle = (number[i] - 1.5) * _QUARTER
        z, sine, cosine = angle * angle, 0.0, 0.0
        for factor in _SIN:
            sine = (sine + factor) * z
        for factor in _COS:
            cosine = (cosine + factor) * z
        x, y = first[i] * (1.0 + cosine), first[i] * angle * (1.0 + sine)
        swaps = (words[i] & _SWAPS) != 0
        x = -x if (words[i] & _TURNS) != 0 else x
        first[i] = y if swaps else x
        second[i] = x if swaps else y
