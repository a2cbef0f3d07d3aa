"""Every unit's own gradient, in the form that is cheapest for the model: written out, factored, or one after another.

All three differentiate a function of one single unit, so that no unit can reach another one's gradient, whatever the
model does with its batch axis: time axes folded into it, losses with physics terms, means over a unit's own samples.
Which form a model takes is tried on the first units; each has to give what differentiating one unit alone gives.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from astrofed.shared.errors import AstrofedError

Units = tuple[Tensor, ...]
"""Tensors whose first axis counts privacy units: [unit, …] each."""
UnitLoss = Callable[[nn.Module, Units], Tensor]
"""Scalar loss of a model on units, of which there is one when it is asked for that unit's gradient."""


class WrongUnitGradients(AstrofedError):
    """Per-unit gradients that are not one for each unit."""


class Gradients(Protocol):
    """The gradients of some units."""

    @property
    def squares(self) -> Tensor:
        """[unit, parameter]: the squared length of each trainable parameter's gradient."""
        ...

    def add_weighted(self, factors: Tensor, totals: Sequence[Tensor]) -> None:
        """Add all units' gradients times `factors` [unit, parameter] to `totals`, one for each trainable parameter."""
        ...


class WrittenOut:
    """Gradients in full: for each trainable parameter [unit, *parameter]. Those that are not finite are zeros."""

    def __init__(self, gradients: list[Tensor]) -> None:
        self.gradients = gradients
        self.squares = all_square_lengths(gradients)
        finite = self.squares.isfinite().all(dim=1)
        if not bool(finite.all()):
            self.gradients = [without(g, finite) for g in gradients]
            self.squares = without(self.squares, finite)

    def add_weighted(self, factors: Tensor, totals: Sequence[Tensor]) -> None:
        """See `Gradients`."""
        if len(factors) == 1:  # at once what would be a call for each parameter, and then for each unit
            parts = torch._foreach_mul([rows[0] for rows in self.gradients], factors[0].tolist())
            torch._foreach_add_(list(totals), parts)
            return
        for total, factor, rows in zip(totals, factors.unbind(1), self.gradients, strict=True):
            add_rows(total, factor, rows)


class Form(ABC):
    """A way to units' gradients."""

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Units, loss: UnitLoss) -> Gradients:
        """Return the gradients of the units in `batch`, of which there is at least one.

        Raises:
            RuntimeError, WrongUnitGradients: the model can't be differentiated in this way.
        """

    def numbers(self, model: nn.Module) -> int:
        """Return how many numbers a unit's gradient takes in memory."""
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class Together(Form):
    """Units' gradients by vectorising the gradient of one unit (`torch.func`)."""

    def __call__(self, model: nn.Module, batch: Units, loss: UnitLoss) -> WrittenOut:
        """See `Form`."""
        return WrittenOut(unit_gradients(model, batch, loss))


class OneByOne(Form):
    """Units' gradients one unit after the other: for models that change tensors in place or branch on their values."""

    def __call__(self, model: nn.Module, batch: Units, loss: UnitLoss) -> WrittenOut:
        """See `Form`."""
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found = []
        for index in range(len(batch[0])):
            value = loss(model, tuple(tensor[index : index + 1] for tensor in batch))
            found.append(gradient(value, weights))
        return WrittenOut([torch.stack(each) for each in zip(*found, strict=True)])


def unit_gradients(model: nn.Module, batch: Units, loss: UnitLoss) -> list[Tensor]:
    """Return each trainable parameter's gradients [unit, *parameter] of the loss of every single unit in `batch`.

    Raises:
        WrongUnitGradients: the first axis is not that of the units.
        RuntimeError: torch can't vectorise the model or the loss.
    """
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    module = Loss(model, loss)

    def one(weights: dict[str, Tensor], unit: Units) -> Tensor:
        alone = tuple(tensor.unsqueeze(0) for tensor in unit)
        value: Tensor = functional_call(module, {f"model.{name}": p for name, p in weights.items()}, (alone,))
        return value

    with torch.no_grad():  # nothing but the transformed function is differentiated
        per_unit = vmap(grad(one), in_dims=(None, 0), randomness="different")(weights, batch)
    found = [per_unit[name] for name in weights]
    for name, gradients in zip(weights, found, strict=True):
        if gradients.shape != (len(batch[0]), *weights[name].shape):
            raise WrongUnitGradients(
                f"gradients of {name!r} have the shape {tuple(gradients.shape)}; {len(batch[0])} units are in the batch"
            )
    return found


def gradient(value: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of a scalar by each of `weights`; zeros where it doesn't depend on one, or on any."""
    if not value.requires_grad:
        return [torch.zeros_like(weight) for weight in weights]
    found = torch.autograd.grad(value, weights, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)]


def add_rows(total: Tensor, factor: Tensor, rows: Tensor) -> None:
    """Add `rows` [unit, …] times `factor` [unit] to `total` […], which lies in one piece of memory."""
    total.view(-1).addmv_(rows.reshape(len(rows), -1).T, factor.to(rows.dtype))


def lengths(rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return [unit]: the length of each unit's part of [unit, …], in its own type or another."""
    if rows.ndim == 1:
        return rows.abs().to(dtype or rows.dtype)
    found: Tensor = torch.linalg.vector_norm(rows, dim=tuple(range(1, rows.ndim)), dtype=dtype)
    return found


def all_square_lengths(gradients: Sequence[Tensor]) -> Tensor:
    """Return [unit, parameter]: the squared lengths of units' parts of each of `gradients` [unit, …]."""
    if len(gradients[0]) == 1:  # as above
        return torch.stack(torch._foreach_norm(list(gradients)))[None].square()
    return torch.stack([lengths(rows) for rows in gradients], dim=1).square()


def without(rows: Tensor, kept: Tensor) -> Tensor:
    """Return [unit, …] with zeros for the units that are not `kept` [unit]."""
    return torch.where(kept.view(-1, *[1] * (rows.ndim - 1)), rows, torch.zeros_like(rows))


class Loss(nn.Module):
    """A model and its loss as one module, so that the model's parameters can be given from outside."""

    def __init__(self, model: nn.Module, loss: UnitLoss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Units) -> Tensor:
        """Return the loss of the model on a batch."""
        return self._loss(self.model, batch)
