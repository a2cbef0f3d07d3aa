"""Meta-learning algorithms as losses: what plain gradient descent on them learns are weights that adapt fast.

- MAML (Finn, Abbeel & Levine 2017, arXiv:1703.03400, algorithm 1): the query's loss after `inner_steps` steps of
  gradient descent on the support, differentiated through those steps.
- FOMAML (same paper, section 5.2): the steps' own dependence on the initial weights is left out.
- Reptile (Nichol, Achiam & Schulman 2018, arXiv:1803.02999, section 3): the gradient is the initial weights less those
  that steps on support and query in turn lead to, over the inner rate.
- ANIL (Raghu et al. 2020, arXiv:1909.09157): MAML in which only the last layers are adapted.

With several participants whose changes the server averages this is Per-FedAvg (Fallah et al. 2020, arXiv:2002.07948).
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from astrofed.client.meta.episodes import Episode, Episodes, Stacked
from astrofed.client.privacy.gradients import Loss as Module
from astrofed.client.privacy.gradients import Units
from astrofed.client.training import Loss
from astrofed.shared.models.base import Model
from astrofed.shared.plan import Meta, PlanError

B = TypeVar("B")
Weights = dict[str, Tensor]
_TINY = 1e-12


def adapted_names(model: nn.Module, meta: Meta) -> list[str]:
    """Return the names of the parameters that a task adapts.

    Raises:
        PlanError: the algorithm is ANIL and the model has no such parameters.
    """
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if meta.algorithm != "anil":
        return trainable
    head = meta.head or (model.last_layers if isinstance(model, Model) else ())
    names = [name for name in trainable if name.startswith(head)] if head else []
    if not names or len(names) == len(trainable):
        found = "all" if names else "none"
        raise PlanError(
            f"meta.head: 'anil' adapts the last layers and leaves the others; {list(head)} names {found} of the "
            f"model's parameters; they are: {', '.join(trainable)}"
        )
    return names


class MetaLoss(Generic[B]):
    """The loss of initial weights on episodes; the mean over them. Its value is the query's loss after adaptation."""

    def __init__(self, model: nn.Module, loss: Loss[B], meta: Meta) -> None:
        """`loss`: of one task's samples.

        Raises:
            PlanError: see `adapted_names`.
        """
        self._module, self._meta = Module(model, loss), meta  # type: ignore[arg-type]
        self._adapted = adapted_names(model, meta)

    def __call__(self, model: nn.Module, episodes: "Episodes[B]") -> Tensor:
        """Return the scalar loss of the model's own weights."""
        weights: Weights = dict(model.named_parameters())
        if isinstance(episodes, Stacked):
            return self._together(weights, episodes)
        return torch.stack([self.of_weights(weights, episode) for episode in episodes]).mean()

    def of_weights(self, weights: Weights, episode: Episode[B], *, mapped: bool = False) -> Tensor:
        """Return the loss of any weights, by name, on one episode; for `mapped` see `step`."""
        if self._meta.algorithm == "reptile":
            return self._reptile(weights, episode, mapped=mapped)
        for _ in range(self._meta.inner_steps):
            first_order = self._meta.algorithm == "fomaml"
            weights = self.step(weights, episode.support, first_order=first_order, mapped=mapped)
        return self.value(weights, episode.query)

    def value(self, weights: Weights, batch: B) -> Tensor:
        """Return the plain loss of a batch."""
        found: Tensor = functional_call(self._module, {f"model.{name}": w for name, w in weights.items()}, (batch,))
        return found

    def step(self, weights: Weights, batch: B, *, first_order: bool, mapped: bool = False) -> Weights:
        """Return the weights after one step of gradient descent at the inner rate.

        `mapped`: whether this runs inside one of torch.func's transforms.
        """

        def adapted(own: Weights) -> Tensor:
            return self.value({**weights, **own}, batch)

        own = {name: weights[name] for name in self._adapted}
        if not first_order:
            gradients = grad(adapted)(own)
        elif mapped:
            with torch.no_grad():
                gradients = grad(adapted)(own)
        else:
            gradients = _constant_gradients(adapted, own)
        rate: float | Tensor = self._meta.inner_rate
        if self._meta.inner_clip is not None:
            length = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
            rate = rate * (self._meta.inner_clip / (length + _TINY)).clamp(max=1.0)
        return {**weights, **{name: own[name] - rate * gradients[name] for name in own}}

    def _together(self, weights: Weights, episodes: Stacked) -> Tensor:
        def one(support: Units, query: Units) -> Tensor:
            return self.of_weights(weights, Episode(support, query), mapped=True)  # type: ignore[arg-type]

        losses: Tensor = vmap(one, randomness="different")(episodes.support, episodes.query)
        return losses.mean()

    def _reptile(self, weights: Weights, episode: Episode[B], *, mapped: bool) -> Tensor:
        """A surrogate whose gradient is Reptile's; its value is the query's loss before a step was taken on it."""
        query: Tensor | None = None
        with torch.no_grad():
            end = weights
            for index in range(self._meta.inner_steps):
                if index % 2 and query is None:
                    query = self.value(end, episode.query)
                batch = episode.query if index % 2 else episode.support
                end = self.step(end, batch, first_order=True, mapped=mapped)
            if query is None:
                query = self.value(end, episode.query)
        squares = [(weights[name] - end[name].detach()).square().sum() for name in self._adapted]
        surrogate = torch.stack(squares).sum() / (2 * self._meta.inner_rate)
        return query.detach() + surrogate - surrogate.detach()


def _constant_gradients(value: Callable[[Weights], Tensor], weights: Weights) -> Weights:
    """Return a scalar's gradients as constants; torch.func's can be differentiated again, which costs a fifth more."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    with torch.enable_grad():
        found = torch.autograd.grad(value(leaves), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))
