"""Gradients of linear layers from what goes into them and the gradient by what comes out, outside the vectorised rest.

The gradient of a linear layer's weight for one row is an outer product, input ⊗ gradient by the output. Its length is
the product of the two lengths, and a weighted sum of many is one matrix product, so no unit's gradient is ever written
out (Goodfellow 2015, arXiv:1510.01799; Bu et al. 2023, arXiv:2210.00038). That holds for a layer that a unit passes
as one row. Where a unit passes it as several rows (tokens), terms may cancel and the same trick ("ghost norm") in
float32 can find a norm far below that of the sum it bounds; there each unit's gradient is written out by one product
of matrices, which is faster than having torch vectorise it, and let go again once its length is known where its factors
are the smaller. All that is not linear is vectorised and written out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from astrofed.client.privacy.gradients import (
    Form,
    Gradients,
    Loss,
    UnitLoss,
    Units,
    WrongUnitGradients,
    add_rows,
    square_lengths,
    without,
)


class Factored(Form):
    """Units' gradients with those of linear layers as factors; made for a model, a loss and units of one shape."""

    def __init__(self, model: nn.Module, loss: UnitLoss, unit: Units) -> None:
        """`unit`: one unit [1, …], on which is seen how often each layer is passed and where its weights go."""
        self._layers = _passed_once(model, loss, unit)

    def worthwhile(self, model: nn.Module) -> bool:
        """Whether most weights are those of such layers; for fewer, vectorising the whole is faster."""
        weights = sum(parameter.numel() for layer in self._linear(model) for parameter in layer.parameters())
        return 2 * weights >= super().numbers(model)

    def numbers(self, model: nn.Module) -> int:
        """See `Form`."""
        saved = 0
        for layer, rows in zip(self._linear(model), self._layers.values(), strict=True):
            less = layer.weight.numel() - rows * (layer.in_features + layer.out_features)
            bias = layer.out_features if layer.bias is not None else 0
            saved += less + bias if rows == 1 else max(0, less)  # of one row, the bias' gradient is a factor already
        return super().numbers(model) - saved

    def __call__(self, model: nn.Module, batch: Units, loss: UnitLoss) -> Gradients:
        """See `Form`."""
        layers, names = self._linear(model), list(self._layers)
        own = {id(p) for layer in layers for p in layer.parameters()}
        rest = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad and id(p) not in own}
        module, rows = Loss(model, loss), list(self._layers.values())

        def one(taps: list[Tensor], rest: dict[str, Tensor], unit: Units) -> tuple[Tensor, list[Tensor]]:
            alone = tuple(tensor.unsqueeze(0) for tensor in unit)
            inputs: dict[int, Tensor] = {}

            def tap(layer: nn.Module, given: Tensor, output: Tensor) -> Tensor:
                index = [id(each) for each in layers].index(id(layer))
                if index in inputs or given.numel() != rows[index] * given.shape[-1]:
                    raise WrongUnitGradients(f"a unit passes layer {names[index]!r} more often than at first")
                inputs[index] = given.reshape(rows[index], -1)
                return output.add_(taps[index].view_as(output))

            with _tapped(layers, tap):
                value = functional_call(module, {f"model.{name}": p for name, p in rest.items()}, (alone,))
            if len(inputs) < len(layers):
                raise WrongUnitGradients("a unit passes fewer layers than at first")
            return value, [inputs[index] for index in range(len(layers))]

        count, zero = len(batch[0]), next(model.parameters()).detach().new_zeros(())
        zeros = [zero.expand(count, n, layer.out_features) for n, layer in zip(rows, layers, strict=True)]
        with torch.no_grad():
            per_unit = vmap(grad(one, argnums=(0, 1), has_aux=True), in_dims=(0, None, 0), randomness="different")
            (outputs, written), inputs = per_unit(zeros, rest, batch)
        return _Factors(model, layers, inputs, outputs, written)

    def _linear(self, model: nn.Module) -> list[nn.Linear]:
        found = (model.get_submodule(name) for name in self._layers)
        return [layer for layer in found if isinstance(layer, nn.Linear)]


class _Factors:
    """See `Gradients`; a unit of which anything is not finite counts nothing.

    `inputs` and `outputs` [unit, row, feature] are of the linear layers, `written` all other gradients by name.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: list[nn.Linear],
        inputs: list[Tensor],
        outputs: list[Tensor],
        written: dict[str, Tensor],
    ) -> None:
        terms: dict[int, tuple[Tensor, Tensor | None]] = {}
        lengths: dict[int, Tensor] = {}
        for layer, given, output in zip(layers, inputs, outputs, strict=True):
            terms[id(layer.weight)], lengths[id(layer.weight)] = _of_weight(given, output)
            if layer.bias is not None:
                terms[id(layer.bias)] = (output.sum(dim=1) if output.shape[1] > 1 else output[:, 0], None)
        for name, parameter in model.named_parameters():
            if name in written:
                terms[id(parameter)] = (written[name], None)
        named = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
        self._terms = [terms[each] for each in named]
        columns = [lengths[each] if each in lengths else square_lengths(terms[each][0]).double() for each in named]
        self.squares = torch.stack(columns, dim=1)
        finite = self.squares.isfinite().all(dim=1)
        if not bool(finite.all()):
            self.squares = without(self.squares, finite)
            self._terms = [(without(a, finite), None if b is None else without(b, finite)) for a, b in self._terms]

    def add_weighted(self, factors: Tensor, totals: Sequence[Tensor]) -> None:
        """See `Gradients`."""
        exact = factors.to(self._terms[0][0].dtype)
        for total, (output, given), factor in zip(totals, self._terms, exact.unbind(1), strict=True):
            if given is None:
                add_rows(total, factor, output)
            else:
                total.addmm_((output * factor[:, None, None]).flatten(0, 1).T, given.flatten(0, 1))


def _of_weight(given: Tensor, output: Tensor) -> tuple[tuple[Tensor, Tensor | None], Tensor]:
    """Return a weight's gradients, as factors or written out, and their squared lengths [unit]."""
    _, rows, columns = given.shape
    if rows == 1:
        return (output, given), _squares(output[:, 0]) * _squares(given[:, 0])
    whole = torch.bmm(output.transpose(1, 2), given)
    smaller = rows * (columns + output.shape[2]) < columns * output.shape[2]
    return (output, given) if smaller else (whole, None), square_lengths(whole).double()


def _squares(rows: Tensor) -> Tensor:
    """[unit] of [unit, …], in double precision: one factor of a product may be as short as the other is long."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return lengths.square()


def _passed_once(model: nn.Module, loss: UnitLoss, unit: Units) -> dict[str, int]:
    """Name the linear layers that one unit passes once, with how many rows; by no other way do they reach the loss.

    Weights can also stand in a penalty, be tied to another layer's, or be used by a function directly. Layers run on
    detached weights here: what gradient there still is came by another way.
    """
    named = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and all(p.requires_grad for p in layer.parameters())
    }
    weights = [p for layer in named.values() for p in layer.parameters()]
    rows: dict[int, list[int]] = {}
    strange: set[int] = set()  # layers that were run on other weights than their own, as `functional_call` can do

    def detached(layer: nn.Module, given: Tensor, _: Tensor) -> Tensor:
        rows.setdefault(id(layer), []).append(given.numel() // given.shape[-1])
        if not {id(p) for p in (layer.weight, layer.bias) if p is not None} <= {id(p) for p in weights}:
            strange.add(id(layer))
        bias = layer.bias.detach() if isinstance(layer.bias, Tensor) else None
        return nn.functional.linear(given, layer.weight.detach(), bias)  # type: ignore[operator]

    if not weights:
        return {}
    with torch.enable_grad(), _tapped(list(named.values()), detached):
        value = loss(model, unit)
        other = torch.autograd.grad(value, weights, allow_unused=True) if value.requires_grad else [None] * len(weights)
    elsewhere = {id(p) for p, found in zip(weights, other, strict=True) if found is not None}
    tied = {p for p in map(id, weights) if list(map(id, weights)).count(p) > 1}
    return {
        name: rows[id(layer)][0]
        for name, layer in named.items()
        if len(rows.get(id(layer), [])) == 1
        and id(layer) not in strange
        and not {id(p) for p in layer.parameters()} & (elsewhere | tied)
    }


Tap = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Of a layer, its input and its output makes what goes on in the output's place."""


@contextmanager
def _tapped(layers: Sequence[nn.Module], tap: Tap) -> Iterator[None]:
    def hook(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        return tap(layer, given[0] if given else named["input"], output)

    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
