"""From a round's clipped sum of updates to what may be seen of it: with noise of its own, or with a tree's."""

from abc import ABC, abstractmethod

import numpy as np
import torch

from astrofed.server.privacy.bounded import Sums
from astrofed.server.privacy.tree import TreeNoise
from astrofed.shared.privacy.noise import Randomness, grid_step


class Release(ABC):
    """What is let out of each round's sum. All of it is on a grid that depends on the noise alone (see `noise.py`)."""

    begins = True
    """Whether the next round is a charge of its own."""

    @abstractmethod
    def __call__(self, total: Sums, deviation: float) -> Sums:
        """Return a round's noisy sum; `deviation`: standard deviation of one draw of noise."""


class Independent(Release):
    """Noise of its own in each round."""

    def __init__(self, random: Randomness) -> None:
        self._random = random

    def __call__(self, total: Sums, deviation: float) -> Sums:
        """See `Release`."""
        return {
            name: np.asarray(self._random.hidden(torch.from_numpy(own), deviation).numpy())
            for name, own in total.items()
        }


class Tree(Release):
    """Running sums with a tree's noise; what a round lets out is what the noisy running sum grew by.

    A tree covers `rounds` rounds and is followed by a new one. It lives in memory alone: noise that is stored could be
    taken off, so after a stop a new tree begins.
    """

    def __init__(self, random: Randomness, rounds: int) -> None:
        self._random, self._rounds = random, rounds
        self._start()

    def _start(self) -> None:
        self._tree: TreeNoise[Sums] | None = None
        self._sum: Sums = {}
        self._released: Sums = {}
        self.begins = True

    def __call__(self, total: Sums, deviation: float) -> Sums:
        """See `Release`; within one tree the deviation must stay the same."""
        if self._tree is None:
            shapes = {name: own.shape for name, own in total.items()}

            def draw() -> Sums:
                return {n: deviation * self._random.normal(int(np.prod(s))).reshape(s) for n, s in shapes.items()}

            self._tree = TreeNoise(draw)
            self._sum = {name: np.zeros_like(own) for name, own in total.items()}
            self._released = {name: np.zeros_like(own) for name, own in total.items()}
            self.begins = False
        step, nodes = grid_step(deviation), self._tree.advance()
        grown: Sums = {}
        for name, own in total.items():
            self._sum[name] += own
            noisy = self._sum[name] + sum(node[name] for node in nodes)
            released = np.round(noisy / step) * step
            grown[name] = released - self._released[name]
            self._released[name] = released
        if self._tree.rounds == self._rounds:
            self._start()
        return grown
