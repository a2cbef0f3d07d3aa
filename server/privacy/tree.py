"""Noise for running sums by a binary tree: DP-FTRL without sampling (Kairouz et al. 2021, arXiv:2103.00039).

The sum of the first t rounds gets the noise of the nodes that make it up, at most log₂ t + 1 of them, where noise of
each round's own would have added up t times. Each node's noise is drawn once (Dwork et al. 2010; Chan et al. 2011).
"""

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


def height(rounds: int) -> int:
    """Return how many nodes of a tree over `rounds` >= 1 rounds one round is part of, at most: floor(log₂) + 1."""
    return rounds.bit_length()


class TreeNoise(Generic[T]):
    """The noise of one tree's running sums, round after round.

    The nodes in use are those of the binary digits of t: node i of level l covers rounds i·2ˡ + 1 to (i + 1)·2ˡ.
    """

    def __init__(self, draw: Callable[[], T]) -> None:
        """`draw` gives one node's noise."""
        self._draw = draw
        self._rounds = 0
        self._nodes: dict[int, T] = {}  # by level

    @property
    def rounds(self) -> int:
        """How many rounds are summed so far."""
        return self._rounds

    def advance(self) -> list[T]:
        """Go on by one round; return the noise of all nodes that the sum up to it is made of."""
        self._rounds += 1
        level = (self._rounds & -self._rounds).bit_length() - 1
        for lower in range(level):
            del self._nodes[lower]
        self._nodes[level] = self._draw()
        return list(self._nodes.values())
