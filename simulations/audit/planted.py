"""Bugs planted into our private training, each for as long as a block lasts, to see that the audit finds them.

They are put into this process's copy of the product's own code; nothing outside of a bench or a test uses them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astrofed.client.privacy import clipping, dpsgd, protection, units
from astrofed.server.privacy import mechanisms
from astrofed.server.privacy.bounded import Sums
from astrofed.server.strategies import central
from astrofed.shared.privacy.noise import Randomness, UnsafeSeededRandomness
from astrofed.simulations.audit.cases import Case, drawn_by_loader
from astrofed.simulations.audit.central import CentralCase

_hide, _train = Randomness.hide, dpsgd.train_privately


@dataclass(frozen=True)
class Planted:
    """A bug, and the training that shows it."""

    name: str
    where: Any  # class or module
    attribute: str
    wrong: Any
    case: Case | CentralCase

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Have the product be wrong in this way within the block."""
        with patch.object(self.where, self.attribute, self.wrong):
            yield


def _no_noise(random: Randomness, values: Tensor, deviation: float) -> None:
    pass


def _quarter(random: Randomness, values: Tensor, deviation: float) -> None:
    _hide(random, values, deviation / 4)


def _first_norms_noise(optimizer: Any) -> None:
    optimizer._random.hide(optimizer.sums, optimizer.noise_multiplier * optimizer.max_grad_norm)
    for parameter in optimizer.params:
        parameter.grad = parameter.summed_grad


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


class _Loader:
    """Draws batches as a data loader with a known seed does, in the place of Poisson sampling; one step a call."""

    def __init__(self, share: float) -> None:
        self._share, self._step = share, 0

    def __call__(self, count: int) -> NDArray[np.float64]:
        drawn = drawn_by_loader(count, self._share, self._step % round(1 / self._share))
        self._step += 1
        return np.where(drawn, 0.0, 1.0)


def _bare(own: mechanisms.Independent, total: Sums, deviation: float) -> Sums:
    return total


def _unclipped_sum(reference: Mapping[str, Any], replies: Sequence[Any], norm: float) -> tuple[Sums, int]:
    return {name: sum(own[name] - old for own in replies) for name, old in reference.items()}, 0


def _all_asked(nodes: Sequence[int], *_: object) -> list[int]:
    return list(nodes)


_seeded: Callable[[], Randomness] = lambda: UnsafeSeededRandomness(7)  # noqa: E731 - in the place of a class

ONCE, OFTEN = Case("one step on all units", 2.0), Case("5 rounds of 10 steps on a tenth", 1.0, rounds=5, batch=0.1)
SAMPLED = CentralCase("5 rounds of a tenth", 1.0, side=48, rounds=5, settings={"sampling_rate": 0.1})
PLANTED = (
    Planted("noise off", Randomness, "hide", _no_noise, ONCE),
    Planted("a quarter of the noise", Randomness, "hide", _quarter, ONCE),
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
    Planted(
        "batches of a shuffled data loader, a Poisson sample's price",
        Randomness,
        "uniform",
        _Loader(0.025),
        Case("40 steps on a fortieth", 1.0, rounds=40, batch=0.025, loader=True),
    ),
    Planted("trained nine times, charged once", protection, "train_privately", _nine_times, ONCE),
    Planted("noise from a known seed", dpsgd, "Randomness", _seeded, Case("replay", 2.0, rounds=3, replay=True)),
    Planted("central: noise off", mechanisms.Independent, "__call__", _bare, CentralCase("one round", 2.0)),
    Planted("central: clipping off", central, "clipped_sum", _unclipped_sum, CentralCase("one round", 2.0)),
    Planted("central: everyone asked, a tenth charged", central, "asked", _all_asked, SAMPLED),
)
