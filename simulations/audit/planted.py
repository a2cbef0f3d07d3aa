"""Bugs planted into our private training, each for as long as a block lasts, to see that the audit finds them.

They are put into this process's copy of the product's own code; nothing outside of a bench or a test uses them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astrofed.client.privacy import clipping, dpsgd, protection, units
from astrofed.shared.privacy.noise import Randomness, UnsafeSeededRandomness
from astrofed.simulations.audit.cases import Case

_hidden, _train = Randomness.all_hidden, dpsgd.train_privately


@dataclass(frozen=True)
class Planted:
    """A bug, and the training that shows it."""

    name: str
    where: Any  # class or module
    attribute: str
    wrong: Any
    case: Case

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Have the product be wrong in this way within the block."""
        with patch.object(self.where, self.attribute, self.wrong):
            yield


def _no_noise(random: Randomness, values: Sequence[Tensor], deviation: float) -> list[Tensor]:
    return [value.clone() for value in values]


def _quarter(random: Randomness, values: Sequence[Tensor], deviation: float) -> list[Tensor]:
    return _hidden(random, values, deviation / 4)


def _first_norms_noise(optimizer: Any) -> None:
    sums = [parameter.summed_grad for parameter in optimizer.params]
    noisy = optimizer._random.all_hidden(sums, optimizer.noise_multiplier * optimizer.max_grad_norm)
    for parameter, gradient in zip(optimizer.params, noisy, strict=True):
        parameter.grad = gradient


def _unclipped(own: clipping.Flat, squares: Tensor) -> Tensor:
    return torch.ones_like(squares)


def _each_layer_whole(own: clipping.Flat, squares: Tensor) -> Tensor:
    return clipping._shrink(squares.sqrt(), own.norm)


def _each_sample(keys: NDArray[np.str_]) -> tuple[Tensor, Tensor]:
    return torch.arange(len(keys))[:, None], torch.ones(len(keys), 1, dtype=torch.bool)


def _everyone(random: Randomness, count: int) -> NDArray[np.float64]:
    return np.zeros(count)


def _nine_times(*arguments: Any) -> None:
    for _ in range(9):
        _train(*arguments)


_seeded: Callable[[], Randomness] = lambda: UnsafeSeededRandomness(7)  # noqa: E731 - in the place of a class

ONCE, OFTEN = Case("one step on all units", 2.0), Case("5 rounds of 10 steps on a tenth", 1.0, rounds=5, batch=0.1)
PLANTED = (
    Planted("noise off", Randomness, "all_hidden", _no_noise, ONCE),
    Planted("a quarter of the noise", Randomness, "all_hidden", _quarter, ONCE),
    Planted("clipping off", clipping.Flat, "factors", _unclipped, ONCE),
    Planted(
        "each of 9 layers clipped to the whole norm",
        clipping.PerLayer,
        "factors",
        _each_layer_whole,
        Case("per-layer clipping", 1.0, side=96, clipping="per-layer", layers=9),
    ),
    Planted(
        "noise for the first norm, though it grows",
        dpsgd._NoisyOptimizer,
        "add_noise",
        _first_norms_noise,
        Case("adaptive clipping", 1.0, epochs=5, batch=0.1, clipping="adaptive"),
    ),
    Planted("unit too fine: a sample", units, "padded", _each_sample, Case("8 samples", 2.0, side=48, samples=8)),
    Planted("all units in every step", Randomness, "uniform", _everyone, OFTEN),
    Planted("trained nine times, charged once", protection, "train_privately", _nine_times, ONCE),
    Planted("noise from a known seed", dpsgd, "Randomness", _seeded, Case("replay", 2.0, rounds=3, replay=True)),
)
