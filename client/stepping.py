"""Steps that are more than one backward pass: accumulated batches, batches in pieces, scaled losses, curvature."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from astrofed.client.devices import device_of
from astrofed.client.fitting import Pieces, out_of_memory
from astrofed.client.optimizers import CURVATURE_EVERY, hessian_diagonal
from astrofed.client.precision import scaler

if TYPE_CHECKING:
    from astrofed.client.training import LocalRound

B = TypeVar("B")


class Stepper(Generic[B]):
    """Takes batches and steps when it has as many as the plan's `accumulate`; the gradient is their mean.

    With `pieces` a batch that memory can't hold is taken in several; when memory runs out all the same, a step begins
    again in smaller ones. Where batches are shared with a team, the gradient is the sum of all processes' parts.
    """

    def __init__(
        self,
        module: "LocalRound[B]",
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        pieces: Pieces[B] | None = None,
    ) -> None:
        self._module, self._optimizer, self._generator, self._pieces = module, optimizer, generator, pieces
        self._team = pieces.team if pieces is not None else None
        self._training = module.work.training
        self._weights = [weight for weight in module.work.weights if weight.requires_grad]
        self._scaler = scaler(self._training, device_of(module.model).type)
        self._curvature: list[Tensor] | None = None
        self._held = self._steps = 0
        self._batches: list[B] = []  # of this step, to begin it again with

    def feed(self, batch: B) -> bool:
        """Add a batch's gradient; return whether a step was taken.

        Raises:
            SampleTooLarge: not even one sample of the batch fits into memory.
        """
        if self._pieces is None:
            self._add([(batch, 1.0)])
        else:
            self._batches.append(batch)
            while self._held < len(self._batches):
                self._add_or_begin_again(self._batches[self._held], self._pieces)
        return self._held == self._training.accumulate and self.flush()

    def _add_or_begin_again(self, batch: B, pieces: Pieces[B]) -> None:
        try:
            self._add(pieces.of(batch))
            return
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Only here has the error let go of what the failed pass held.
        losses = self._module.work.losses
        del losses[len(losses) - self._held :]
        self._held = 0
        for weight in self._weights:
            weight.grad = None
        pieces.halve(batch)

    def _add(self, parts: Sequence[tuple[B, float]]) -> None:
        """Add the gradient of a batch's parts, by their shares, and note its loss."""
        first = self._held == 0
        if first:
            for weight in self._weights:
                weight.grad = None
        losses = self._module.work.losses
        before = len(losses)
        try:
            for part, share in parts:
                value = self._module.training_step(part, self._steps)
                if share != 1.0:
                    value = value * share
                    losses[-1] = losses[-1] * share
                if first and self._training.optimizer == "sophia" and self._steps % CURVATURE_EVERY == 0:
                    self._curvature = hessian_diagonal(value, self._weights, self._generator)
                else:
                    scaled: Tensor = value if self._scaler is None else self._scaler.scale(value)
                    scaled.backward()  # type: ignore[no-untyped-call]
        except BaseException:
            del losses[before:]
            raise
        if len(parts) != 1:
            nothing = self._module.work.weights[0].new_zeros(())
            losses[before:] = [torch.stack(losses[before:]).sum() if parts else nothing]
        self._held += 1

    def flush(self) -> bool:
        """Step with what is held, if anything; return whether there was."""
        if not self._held:
            return False
        if self._team is not None:
            self._team.add_gradients(self._weights)
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        if self._held > 1:
            torch._foreach_mul_([w.grad for w in self._weights if w.grad is not None], 1 / self._held)
        self._module.on_after_backward()
        self._module.configure_gradient_clipping(self._optimizer)
        if self._scaler is not None:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        elif self._training.optimizer == "sophia":
            sophia: Any = self._optimizer
            sophia.step(hessian=self._curvature)
            self._curvature = None
        else:
            self._optimizer.step()
        self._held = 0
        self._batches.clear()
        self._steps += 1
        return True
