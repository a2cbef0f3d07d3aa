"""Gradients of linear layers and convolutions from what goes in and the gradient by what comes out, outside the rest.

The gradient of a linear layer's weight for one row is an outer product, input ⊗ gradient by the output. Its length is
the product of the two lengths, and a weighted sum of many is one matrix product, so no unit's gradient is ever written
out (Goodfellow 2015, arXiv:1510.01799; Bu et al. 2023, arXiv:2210.00038). That holds for a layer that a unit passes
as one row. Where a unit passes it as several rows (tokens, a convolution's patches), terms may cancel and the same
trick ("ghost norm") in float32 can find a norm far below that of the sum it bounds; there each unit's gradient is
written out by one product of matrices, which takes less than having torch vectorise it, and let go again once its
length is known where its factors are the smaller. All other weights' gradients are written out.

Only the forward pass of a unit is vectorised, so no unit reaches another; then one backward pass over all units gives
what each one's own copies of biases and other weights would have. It lets activations go as it comes past them, which
`torch.func.grad` inside of `vmap` does not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from astrofed.client.privacy.gradients import (
    Form,
    Gradients,
    Loss,
    UnitLoss,
    Units,
    WrongUnitGradients,
    add_rows,
    gradient,
    lengths,
    without,
)
from astrofed.client.privacy.layers import Multiplying, as_rows, everywhere, multiplied, passed_once, sizes, tapped

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
            into, out = sizes(layer)
            rows = shape.numel() // out
            less = layer.weight.numel() - rows * (into + out)
            bias = out if layer.bias is not None else 0
            saved += less + bias if rows == 1 else max(0, less)  # of one row, the bias' gradient is a factor already
        return super().numbers(model) - saved

    def __call__(self, model: nn.Module, batch: Units, loss: UnitLoss) -> Gradients:
        """See `Form`."""
        layers, names, shapes = self._found(model), list(self._layers), list(self._layers.values())
        own = {id(p) for layer in layers for p in layer.parameters()}
        named = {n: p for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
        others = {f"model.{name}": p for name, p in named.items() if id(p) not in own}  # tied ones by each name
        module, places = Loss(model, loss), {id(layer): index for index, layer in enumerate(layers)}

        def one(taps: list[Tensor], rest: dict[int, Tensor], unit: Units) -> tuple[Tensor, list[Tensor]]:
            alone = tuple(tensor.unsqueeze(0) for tensor in unit)
            inputs: dict[int, Tensor] = {}

            def tap(layer: Multiplying, given: Tensor) -> Tensor:
                index = places[id(layer)]
                output = multiplied(layer, given, layer.weight.detach(), None)
                if index in inputs or output.shape != shapes[index]:
                    raise WrongUnitGradients(f"a unit passes layer {names[index]!r} more often than at first")
                inputs[index] = given
                return output + taps[index]

            weights = {name: rest[id(p)] for name, p in others.items()}
            with tapped(layers, tap):
                value = functional_call(module, weights, (alone,), tie_weights=False)
            if len(inputs) < len(layers):
                raise WrongUnitGradients("a unit passes fewer layers than at first")
            return value, [inputs[index] for index in range(len(layers))]

        count = len(batch[0])
        biases = [everywhere(layer, shape) for layer, shape in zip(layers, shapes, strict=True)]
        taps = [bias.expand(count, *bias.shape).requires_grad_() for bias in biases]
        single = {id(p): p.detach() for p in others.values()}
        rest = {key: p.expand(count, *p.shape).requires_grad_() for key, p in single.items()}
        with torch.enable_grad():
            values, inputs = vmap(one, randomness="different")(taps, rest, batch)
            found = gradient(values.sum(), [*taps, *rest.values()])
        written = dict(zip(rest, found[len(taps) :], strict=True))
        parameters = list(dict.fromkeys(map(id, named.values())))
        return _Factors(parameters, layers, [given.detach() for given in inputs], found[: len(taps)], written)

    def _found(self, model: nn.Module) -> list[Multiplying]:
        found = (model.get_submodule(name) for name in self._layers)
        return [layer for layer in found if isinstance(layer, Multiplying)]


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
        self.squares = torch.stack(columns, dim=1).double().square()
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
                matrix = total.view(len(total), -1)
                matrix.addmm_((output * factor[:, None, None]).flatten(0, 1).T, given.flatten(0, 1))


def _of_layer(layer: Multiplying, come: Tensor, gone: Tensor) -> tuple[tuple[Tensor, Tensor | None], Tensor, Tensor]:
    """Return a weight's gradients, as factors or written out, their lengths [unit], and its bias' gradients."""
    columns, out = sizes(layer)
    rows = gone[0].numel() // out
    if rows == 1:
        given, output = as_rows(layer, come, gone)
        # in double precision: one factor may be as short as the other is long
        product = lengths(output, torch.float64) * lengths(given, torch.float64)
        return (output, given), product, output[:, 0]
    some = max(1, _AT_ONCE // (max(rows, out) * columns))
    if rows * (columns + out) < columns * out:
        given, output = as_rows(layer, come, gone)
        parts = [(output[at : at + some], given[at : at + some]) for at in range(0, len(given), some)]
        found = [lengths(torch.bmm(g.mT, x)) for g, x in parts]
        return (output, given), torch.cat(found) if len(found) > 1 else found[0], output.sum(dim=1)
    whole, sums = gone.new_empty(len(gone), out, columns), gone.new_empty(len(gone), out)
    for part, total, x, g in zip(*(torch.split(each, some) for each in (whole, sums, come, gone)), strict=True):
        given, output = as_rows(layer, x, g)
        torch.bmm(output.transpose(1, 2), given, out=part)
        torch.sum(output, dim=1, out=total)
    return (whole, None), lengths(whole), sums
