"""Batches that a site's memory can't hold are taken in pieces, and the step stays the plan's.

A plan's batch size says what a step is; it is not for a machine to change. How large a piece may be is found by the
site itself, from what samples save for the backward pass and from the memory that is free. The pieces' losses are
weighted by their share of the samples, so that their gradients add up to the batch's, to rounding.
"""

import logging
import sys
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from astrofed.client.sharing import Team
from astrofed.shared.errors import UserMistake
from astrofed.shared.memory import free_memory, readable
from astrofed.shared.models.base import Model
from astrofed.shared.plan import Training

B = TypeVar("B")
_CPU = torch.device("cpu")
LOG = logging.getLogger("astrofed.site")
SHARE = 0.5
"""Of the free memory, for what is saved for the backward pass: gradients and operators' own buffers need some too."""
AMPLE = 16  # a batch that could be so many times as large fits whatever else happens


class SampleTooLarge(UserMistake):
    """Not even one sample's activations fit into memory."""


@dataclass(frozen=True)
class Split(Generic[B]):
    """How a batch is taken apart; only for losses that are a mean over the samples, all of which count alike."""

    shape: Callable[[B], Sequence[int]]
    """Of what the network sees, samples first; samples of the same shape need the same memory."""
    take: Callable[[B, Tensor], B]
    """Gives the samples with these indices [sample]."""


COLUMNS: Split[Any] = Split(lambda batch: batch[0].shape, lambda batch, rows: tuple(column[rows] for column in batch))
"""Of batches that are tuples of tensors [sample, …]."""


@dataclass(frozen=True)
class _Need:
    """What batches of one shape need, and what a piece may have, in bytes; and how many samples a piece may have."""

    fixed: int
    each: int
    free: int
    share: int
    most: int
    told: bool = False

    def of(self, samples: int) -> int:
        return self.fixed + samples * self.each


_known: WeakKeyDictionary[nn.Module, dict[Hashable, _Need]] = WeakKeyDictionary()
_looking = threading.Lock()  # who looks at the free memory has taken nothing of it yet


class Pieces(Generic[B]):
    """Takes one round's batches in pieces that fit.

    Args:
        split: how a batch is taken apart.
        model: what is trained, in training mode; what it needs is remembered as long as it lives.
        loss: of a batch.
        training: the plan's section.
        at_once: how many clients train on this machine at the same time; they share its memory.
        draws: whether the model may draw from torch's global generator, which then is left as it was.
        team: with whom the batches are shared; each process takes its rows alone.
    """

    def __init__(
        self,
        split: Split[B],
        model: nn.Module,
        loss: Callable[[B], Tensor],
        training: Training,
        *,
        at_once: int,
        draws: bool,
        team: Team | None = None,
    ) -> None:
        self._split, self._model, self._loss, self._training = split, model, loss, training
        self._draws, self.team = draws, team
        self._device = next((weight.device for weight in model.parameters()), _CPU)
        self._at_once = at_once * (team.size if team is not None and self._device == _CPU else 1)
        needs = _known.get(model)
        if needs is None:
            with _looking:
                needs = _known.setdefault(model, {})
        self._needs = needs

    def ample(self, batch: B) -> bool:
        """Return whether memory is no matter for a batch that nobody shares, nor for those like it that follow."""
        if self.team is not None:
            return False
        need, samples = self._need(batch), self._split.shape(batch)[0]
        return self._device == _CPU and AMPLE * need.of(samples) <= need.share

    def of(self, batch: B) -> Sequence[tuple[B, float]]:
        """Return the batch's pieces and their shares of its samples, which sum to 1; of a shared batch, its own rows.

        Raises:
            SampleTooLarge: one sample needs more memory than is free.
        """
        need, samples = self._need(batch), self._split.shape(batch)[0]
        rows = range(samples) if self.team is None else self.team.rows(samples)
        if len(rows) == samples <= need.most:
            return [(batch, 1.0)]
        if not rows:
            return []
        if len(rows) > need.most and not need.told:
            size, free = readable(need.of(len(rows))), readable(need.free)
            words = "batches of %d samples are taken in pieces of %d: one needs %s, %s are free"
            LOG.warning(words, len(rows), need.most, size, free)
            self._needs[self._key(batch)] = replace(need, told=True)
        parts = torch.split(torch.arange(rows.start, rows.stop), need.most)
        return [(self._split.take(batch, part), len(part) / samples) for part in parts]

    def halve(self, batch: B) -> None:
        """Take batches of this shape in pieces half as large: memory ran out.

        Raises:
            SampleTooLarge: pieces were of one sample already.
        """
        need, samples = self._need(batch), self._split.shape(batch)[0]
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        own = samples if self.team is None else len(self.team.rows(samples))
        size, free = min(need.most, own), self._free()
        if size == 1:
            raise self._too_large(readable(need.of(1)), free)
        self._needs[self._key(batch)] = replace(need, free=free, most=size // 2, told=False)

    def _need(self, batch: B) -> _Need:
        key = self._key(batch)
        need = self._needs.get(key)
        if need is None:
            need = self._needs[key] = self._look(batch)
        return need

    def _key(self, batch: B) -> Hashable:
        return (*self._split.shape(batch)[1:], self._training.precision, self._training.checkpoint)

    def _look(self, batch: B) -> _Need:
        with _looking:
            free = self._free()
            share = int(SHARE * free / self._at_once)
            one = self._saved(batch, 1)
            if one is None or one > free:
                raise self._too_large("too much" if one is None else readable(one), free)
            several = self._split.shape(batch)[0] > 1 and 2 * one <= share
            two = self._saved(batch, 2) if several else None
        each = max(1, two - one) if two is not None else max(1, one)
        return _Need(one - each, each, free, share, most=max(1, (share - one) // each + 1))

    def _saved(self, batch: B, samples: int) -> int | None:
        """What the first samples save for the backward pass, in bytes; None where memory ran out."""
        piece = self._split.take(batch, torch.arange(samples))
        devices = [self._device] if self._device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices) if self._draws else nullcontext():
                saved = saved_bytes(lambda: self._loss(piece), self._model)
                if isinstance(self._model, Model) and self._model.checkpointing:
                    # Besides what blocks begin with: the block that is computed again, at most half of everything.
                    self._model.checkpointing = False
                    saved += saved_bytes(lambda: self._loss(piece), self._model) // 2
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return None
        finally:
            if isinstance(self._model, Model):
                self._model.checkpointing = self._training.checkpoint
        return saved

    def _free(self) -> int:
        if self._device.type == "cuda":
            kept = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
            return int(torch.cuda.mem_get_info(self._device)[0]) + kept
        free = free_memory()
        return sys.maxsize if free is None else free

    def _too_large(self, needed: str, free: int) -> SampleTooLarge:
        mend = "a smaller network, such as model.base_features = 8"
        if not self._training.checkpoint:
            mend = f"training.checkpoint = true where the network has places for it, or {mend}"
        return SampleTooLarge(
            f"training.batch_size = {self._training.batch_size}: one sample alone saves {needed} for the backward "
            f"pass, and {readable(free)} of memory are free; set {mend}"
        )


def saved_bytes(loss: Callable[[], Tensor], model: nn.Module) -> int:
    """Return the bytes that a loss saves for its backward pass: each storage once, without the model's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss()
    return sum(storage.nbytes() for address, storage in found.items() if address not in own)


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, as torch or Python say it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
