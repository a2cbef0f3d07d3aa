"""The stopwatch: blocks between a first round that warms up and a last one that evaluates, peers in turn."""

import pytest
import torch
from torch import Tensor

from astrofed.shared.record import Round
from astrofed.simulations.bench.stopwatch import RUN, Stopwatch


class Counting:
    """A peer that counts its rounds."""

    def __init__(self) -> None:
        self.rounds = 0

    def run_round(self) -> None:
        self.rounds += 1

    @property
    def weights(self) -> dict[str, Tensor]:
        return {"rounds": torch.tensor(self.rounds)}


def entry(number: int) -> Round:
    return Round(previous="", round=number, seconds=0, bytes=0, checkpoint="", checkpoint_sha256="")


def test_peers_run_as_many_rounds_as_the_run_block_by_block() -> None:
    peer = Counting()
    watch = Stopwatch({"peer": peer}, rounds=8, block=3)
    seen = []
    for number in range(9):
        watch.round_done(entry(number))
        seen.append(peer.rounds)
    assert seen == [0, 1, 1, 1, 4, 4, 4, 7, 8]
    assert len(watch.per_round(RUN)) == len(watch.per_round("peer")) == 2
    assert watch.first > 0 and not watch.should_stop()


@pytest.mark.parametrize(("rounds", "block"), [(2, 1), (7, 3), (9, 3), (5, 0)])
def test_rounds_that_are_no_whole_blocks_are_refused(rounds: int, block: int) -> None:
    with pytest.raises(ValueError, match=f"{rounds} rounds are not one"):
        Stopwatch({}, rounds, block)
