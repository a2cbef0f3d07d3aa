"""Several devices of one site take every step together: each has its rows of a batch, and gradients are added up.

All processes of the team run the same client app on the same question, with the same seeds, and so with the same
batches and weights. A sample's loss counts by its share of the batch wherever it is taken (`client.fitting`), so that
the sum of the gradients is the batch's, to rounding, and all take the same step.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from astrofed.shared.errors import AstrofedError

LOG = logging.getLogger("astrofed.site")


class OutOfStep(AstrofedError):
    """Another process of the team is gone, or doesn't answer."""


class Team:
    """This process's place among those that train together, in torch's default process group."""

    def __init__(self, rank: int, size: int) -> None:
        """`rank`: from 0, which alone answers for all."""
        self.rank, self.size = rank, size
        self.lost = False  # whether another process is gone
        self._said: set[str] = set()

    def say_once(self, words: str) -> None:
        """Write into the site's log what its operator may wonder about."""
        if words not in self._said:
            self._said.add(words)
            LOG.warning(words)

    def rows(self, samples: int) -> range:
        """Return which of a batch's samples are this process's; none where there are too few for all."""
        return range(samples * self.rank // self.size, samples * (self.rank + 1) // self.size)

    def add_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Give each weight the sum of all processes' gradients; one that nobody's loss reached has none.

        Raises:
            OutOfStep: another process is gone, or takes too long.
        """
        kinds: dict[torch.dtype, list[nn.Parameter]] = {}
        for weight in weights:
            kinds.setdefault(weight.dtype, []).append(weight)
        for alike in kinds.values():
            reached = alike[0].new_tensor([float(weight.grad is not None) for weight in alike])
            given = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in alike]
            flat = torch.cat([*(gradient.reshape(-1) for gradient in given), reached])
            self._add(flat)
            *sums, reached = torch.split(flat, [*(weight.numel() for weight in alike), len(alike)])
            for weight, gradient, total, count in zip(alike, given, sums, reached.tolist(), strict=True):
                weight.grad = gradient.copy_(total.view_as(weight)) if count else None

    def add_losses(self, losses: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums of all processes' losses, step by step (errors as of `add_gradients`)."""
        if not losses:
            return []
        total = torch.stack(list(losses))
        self._add(total)
        return list(total)

    def _add(self, tensor: Tensor) -> None:
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            self.lost = True
            raise OutOfStep(f"process {self.rank} of {self.size} waits for the others in vain") from error


_present: ContextVar[Team | None] = ContextVar("team", default=None)


def current_team() -> Team | None:
    """Return the team that this process's training is shared with; None: it trains alone."""
    return _present.get()


@contextmanager
def shared_with(team: Team) -> Iterator[None]:
    """Share training with a team for a block."""
    token = _present.set(team)
    try:
        yield
    finally:
        _present.reset(token)
