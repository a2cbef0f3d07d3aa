"""A stopwatch on a run's rounds, and the peers that run the same rounds in turn with it."""

import time
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from astrofed.shared.plan import Plan
from astrofed.shared.record import Round, Start

RUN = "the run itself"


class Peer(Protocol):
    """Another way to run the same rounds in this process."""

    def run_round(self) -> None:
        """Run the next round."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """The global weights after the last round."""


class Stopwatch:
    """Takes the time of a run's rounds, by blocks; after each block the peers run as many.

    The first round warms up and the last also evaluates: both stand apart. Blocks, because the record is flushed once a
    second: were the peers to run after each round, every round would pay for it.
    """

    def __init__(self, peers: Mapping[str, Peer], rounds: int, block: int) -> None:
        if block < 1 or rounds < 2 + block or (rounds - 2) % block:
            raise ValueError(f"{rounds} rounds are not one, some blocks of {block}, and one")
        self.peers = peers
        self.first = 0.0
        self._ends = {1, *range(1 + block, rounds, block), rounds}
        self._times: dict[str, list[float]] = {name: [] for name in (RUN, *peers)}
        self._last, self._block = 0, block
        self._since = self._called = time.perf_counter()

    def started(self, plan: Plan, start: Start) -> None:
        """Nothing is noted."""

    def round_done(self, entry: Round) -> None:
        """Note the time of a block, and let the peers run theirs."""
        now = time.perf_counter()
        if entry.round == 1:
            self.first = now - self._called
        if entry.round in self._ends:
            self._times[RUN].append(now - self._since)
            for name, peer in self.peers.items():
                began = time.perf_counter()
                for _ in range(entry.round - self._last):
                    peer.run_round()
                self._times[name].append(time.perf_counter() - began)
            self._last = entry.round
        if entry.round == 0 or entry.round in self._ends:
            self._since = time.perf_counter()

    def should_stop(self) -> bool:
        """Never."""
        return False

    def per_round(self, name: str) -> list[float]:
        """Return seconds a round of each block."""
        return [seconds / self._block for seconds in self._times[name][1:-1]]
