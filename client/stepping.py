"""Steps that are more than one backward pass: accumulated batches, scaled losses, curvature."""

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from astrofed.client.optimizers import CURVATURE_EVERY, hessian_diagonal
from astrofed.client.precision import scaler

if TYPE_CHECKING:
    from astrofed.client.training import LocalRound

B = TypeVar("B")


class Stepper(Generic[B]):
    """Takes batches and steps when it has as many as the plan's `accumulate`; the gradient is their mean."""

    def __init__(self, module: "LocalRound[B]", optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
        self._module, self._optimizer, self._generator = module, optimizer, generator
        self._training = module.work.training
        self._weights = [weight for weight in module.work.weights if weight.requires_grad]
        self._scaler = scaler(self._training)
        self._curvature: list[Tensor] | None = None
        self._held = self._steps = 0

    def feed(self, batch: B) -> bool:
        """Add a batch's gradient; return whether a step was taken."""
        first = self._held == 0
        if first:
            for weight in self._weights:
                weight.grad = None
        value = self._module.training_step(batch, self._steps)
        if first and self._training.optimizer == "sophia" and self._steps % CURVATURE_EVERY == 0:
            self._curvature = hessian_diagonal(value, self._weights, self._generator)
        else:
            scaled: Tensor = value if self._scaler is None else self._scaler.scale(value)
            scaled.backward()  # type: ignore[no-untyped-call]
        self._held += 1
        return self._held == self._training.accumulate and self.flush()

    def flush(self) -> bool:
        """Step with what is held, if anything; return whether there was."""
        if not self._held:
            return False
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
        self._steps += 1
        return True
