"""From the shared weights to a task's own: a few steps of gradient descent on its support."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.func import vmap

from astrofed.client.meta.algorithms import MetaLoss, Weights
from astrofed.client.privacy.gradients import Units
from astrofed.client.training import Loss
from astrofed.shared.plan import Meta

B = TypeVar("B")


class Adapter(Generic[B]):
    """Adapts a model as the plan's [meta] section says: which weights, at which rate, how many steps."""

    def __init__(self, meta: Meta, loss: Loss[B]) -> None:
        """`loss`: of one task's samples."""
        self._meta, self._loss = meta, loss
        self._steps = meta.adaptation_steps or meta.inner_steps

    def adapted(self, model: nn.Module, support: B) -> nn.Module:
        """Return a copy of the model, adapted to one task; the model stays as it is."""
        own = copy.deepcopy(model).eval()
        weights = self._weights(MetaLoss(own, self._loss, self._meta), dict(own.named_parameters()), support)
        with torch.no_grad():
            for name, parameter in own.named_parameters():
                parameter.copy_(weights[name])
        return own

    def stacked(self, model: nn.Module, support: Units) -> Weights:
        """Return weights [task, *parameter] by name, adapted to tasks of equal shape [task, shot, …] one by one."""
        model.eval()
        meta_loss = MetaLoss(model, self._loss, self._meta)
        own = {name: parameter.detach() for name, parameter in model.named_parameters()}

        def one(support: Units) -> Weights:
            return self._weights(meta_loss, dict(own), support, mapped=True)  # type: ignore[arg-type]

        found: Weights = vmap(one, randomness="different")(support)
        return {name: tensor.detach() for name, tensor in found.items()}

    def _weights(self, meta_loss: MetaLoss[B], weights: Weights, support: B, *, mapped: bool = False) -> Weights:
        with torch.no_grad():
            for _ in range(self._steps):
                weights = meta_loss.step(weights, support, first_order=True, mapped=mapped)
        return weights


def predictions(model: nn.Module, weights: Weights, inputs: Tensor) -> Tensor:
    """Return each task's own predictions [task, row, …] of `inputs` [task, row, feature] by `weights` [task, …]."""

    def one(own: Weights, rows: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(model, own, (rows,))
        return found

    with torch.no_grad():
        found: Tensor = vmap(one)(weights, inputs)
    return found
