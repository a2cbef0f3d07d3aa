"""Gradients of linear layers, convolutions and norms from what goes in and the gradient by what comes out.

The gradient of a linear layer's weight for one row is an outer product, input ⊗ gradient by the output. Its length is
the product of the two lengths, and a weighted sum of many is one matrix product, so no unit's gradient is ever written
out (Goodfellow 2015, arXiv:1510.01799; Bu et al. 2023, arXiv:2210.00038). That holds for a layer that a unit passes
as one row. Where a unit passes it as several rows (tokens, a convolution's patches), terms may cancel and the same
trick ("ghost norm") in float32 can find a norm far below that of the sum it bounds; there each unit's gradient is
written out by one product of matrices, which takes less than having torch vectorise it, and let go again once its
length is known where its factors are the smaller. All other weights' gradients are written out.

Only the forward pass of a unit is vectorised, so no unit reaches another, and each of these layers in it is one call on
the rows of all units, where `vmap` would take it apart; then one backward pass over all units gives what each one's own
copies of other weights would have. It lets activations go as it comes past them, which `torch.func.grad` inside of
`vmap` does not.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.func import functional_call, vmap

from astrofed.client.privacy.gradients import (
    Form,
    Gradients,
    Loss,
    UnitLoss,
    Units,
    WrongUnitGradients,
    add_rows,
    lengths,
    without,
)
from astrofed.client.privacy.layers import Multiplying, as_batch, as_rows, passed, passed_once, sizes, tapped
from astrofed.client.privacy.vectorised import of_every_unit, of_one_unit

_AT_ONCE = 2**18  # numbers of rows or gradients that are held beside what stays


class Factored(Form):
    """Units' gradients with those of `layers` as factors; made for a model, a loss and units of one shape."""

    def __init__(self, model: nn.Module, loss: UnitLoss, unit: Units, *, convolutions: bool = True) -> None:
        """`unit`: one unit [1, …], on which is seen how often each layer is passed and where its weights go."""
        self._layers = passed_once(model, loss, unit, convolutions=convolutions)

    def worthwhile(self, model: nn.Module) -> bool:
        """Whether most weights are those of such layers; for fewer, vectorising the whole is faster."""
        weights = sum(parameter.numel() for layer in self._found(model) for parameter in layer.parameters())
        return 2 * weights >= super().numbers(model)

    def numbers(self, model: nn.Module) -> int:
        """See `Form`."""
        saved = 0
        for layer, shape in zip(self._found(model), self._layers.values(), strict=True):
            if isinstance(layer, nn.LayerNorm):
                continue  # whose gradients are written out
            into, out = sizes(layer)
            rows = shape.numel() // out
            less = layer.weight.numel() - rows * (into + out)
            bias = out if layer.bias is not None else 0
            saved += less + bias if rows == 1 else max(0, less)  # of one row, the bias' gradient is a factor already
        return super().numbers(model) - saved

    def __call__(self, model: nn.Module, batch: Units, loss: UnitLoss) -> Gradients:
        """See `Form`."""
        layers, names, shapes = self._found(model), list(self._layers), list(self._layers.values())
        own = {id(p) for layer in layers for p in (layer.weight, layer.bias)}
        named = {n: p for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
        others = {f"model.{name}": p for name, p in named.items() if id(p) not in own}  # tied ones by each name
        places = {id(layer): index for index, layer in enumerate(layers)}
        count, inputs, edges = len(batch[0]), dict[int, Tensor](), dict[int, GradientEdge]()

        def tap(layer: Multiplying, given: Tensor) -> Tensor:
            index = places[id(layer)]
            rows, before = as_batch(layer, of_every_unit(given, count))
            output, seen = passed(layer, rows)
            made = output.view(*before, *output.shape[1:])
            if index in inputs or made.shape[1:] != shapes[index]:
                raise WrongUnitGradients(f"a unit passes layer {names[index]!r} more often than at first")
            assert output.grad_fn is not None  # the layer's own parameters are trained
            inputs[index], edges[index] = seen, GradientEdge(output.grad_fn, output.output_nr)
            return of_one_unit(made)

        def one(rest: dict[int, Tensor], unit: Units) -> Tensor:
            alone = tuple(tensor.unsqueeze(0) for tensor in unit)
            if not others:
                return loss(model, alone)
            weights = {name: rest[id(p)] for name, p in others.items()}
            value: Tensor = functional_call(Loss(model, loss), weights, (alone,), tie_weights=False)
            return value

        single = {id(p): p.detach() for p in others.values()}
        rest = {key: p.expand(count, *p.shape).requires_grad_() for key, p in single.items()}
        with torch.enable_grad():
            with tapped(layers, tap):
                value = vmap(one, randomness="different")(rest, batch).sum()
            if len(inputs) < len(layers):
                raise WrongUnitGradients("a unit passes fewer layers than at first")
            found = _gradient(value, [*(edges[index] for index in range(len(layers))), *rest.values()])
        given = [_by_unit(inputs[index], count) for index in range(len(layers))]
        outputs = [
            layer.weight.new_zeros(count, *shape) if gone is None else _by_unit(gone, count)
            for layer, shape, gone in zip(layers, shapes, found[: len(layers)], strict=True)
        ]
        of_others = zip(rest.items(), found[len(layers) :], strict=True)
        written = {key: torch.zeros_like(p) if gone is None else gone for (key, p), gone in of_others}
        return _Factors(list(dict.fromkeys(map(id, named.values()))), layers, given, outputs, written)

    def _found(self, model: nn.Module) -> list[Multiplying]:
        found = (model.get_submodule(name) for name in self._layers)
        return [layer for layer in found if isinstance(layer, Multiplying)]


def _by_unit(rows: Tensor, count: int) -> Tensor:
    """Return [unit, row, …] of [unit · row, …]."""
    return rows.view(count, -1, *rows.shape[1:])


def _gradient(value: Tensor, by: Sequence[Tensor | GradientEdge]) -> Sequence[Tensor | None]:
    """Return the gradient of a scalar by each of `by`; None where it doesn't depend on one."""
    if not value.requires_grad:
        return [None] * len(by)
    return torch.autograd.grad(value, by, allow_unused=True)  # type: ignore[arg-type]


class _Factors:
    """See `Gradients`; a unit of which anything is not finite counts nothing.

    `named` are the ids of all trainable parameters; `inputs` and `outputs` [unit, …] are of the layers, `written` all
    other parameters' gradients.
    """

    def __init__(
        self,
        named: list[int],
        layers: list[Multiplying],
        inputs: list[Tensor],
        outputs: list[Tensor],
        written: dict[int, Tensor],
    ) -> None:
        terms: dict[int, tuple[Tensor, Tensor | None]] = {key: (found, None) for key, found in written.items()}
        known: dict[int, Tensor] = {}
        for layer, given, output in zip(layers, inputs, outputs, strict=True):
            terms[id(layer.weight)], known[id(layer.weight)], sums = _of_layer(layer, given, output)
            if layer.bias is not None:
                terms[id(layer.bias)] = (sums, None)
        self._terms = [terms[each] for each in named]
        columns = [known[each] if each in known else lengths(terms[each][0]) for each in named]
        self.squares = torch.stack(columns).double().square().T
        if not math.isfinite(float(self.squares.sum())):
            finite = self.squares.isfinite().all(dim=1)
            self.squares = without(self.squares, finite)
            self._terms = [(without(a, finite), None if b is None else without(b, finite)) for a, b in self._terms]

    def add_weighted(self, factors: Tensor, totals: Sequence[Tensor]) -> None:
        """See `Gradients`."""
        exact = factors.to(self._terms[0][0].dtype)
        for total, (output, given), factor in zip(totals, self._terms, exact.unbind(1), strict=True):
            if given is None:
                add_rows(total, factor, output)
            else:
                matrix = total.view(len(total), -1)
                matrix.addmm_((output * factor[:, None, None]).flatten(0, 1).T, given.flatten(0, 1))


def _of_layer(layer: Multiplying, come: Tensor, gone: Tensor) -> tuple[tuple[Tensor, Tensor | None], Tensor, Tensor]:
    """Return a weight's gradients, as factors or written out, their lengths [unit], and its bias' gradients."""
    if isinstance(layer, nn.LayerNorm):
        scale = (come * gone).sum(dim=1)
        return (scale, None), lengths(scale), gone.sum(dim=1)
    columns, out = sizes(layer)
    rows = gone.numel() // (len(gone) * out)
    if rows == 1:
        given, output = as_rows(layer, come, gone)
        # in double precision: one factor may be as short as the other is long
        product = lengths(output, torch.float64) * lengths(given, torch.float64)
        return (output, given), product.to(output.dtype), output[:, 0]
    some = max(1, _AT_ONCE // (max(rows, out) * columns))
    if rows * (columns + out) < columns * out:
        given, output = as_rows(layer, come, gone)
        parts = zip(torch.split(output, some), torch.split(given, some), strict=True)
        found = [lengths(torch.bmm(g.mT, x)) for g, x in parts]
        return (output, given), torch.cat(found) if len(found) > 1 else found[0], output.sum(dim=1)
    whole, sums = gone.new_empty(len(gone), out, columns), gone.new_empty(len(gone), out)
    for part, total, x, g in zip(*(torch.split(each, some) for each in (whole, sums, come, gone)), strict=True):
        given, output = as_rows(layer, x, g)
        torch.bmm(output.mT, given, out=part)
        torch.sum(output, dim=1, out=total)
    return (whole, None), lengths(whole), sums
