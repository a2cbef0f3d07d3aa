"""Layers whose weight multiplies rows: linear ones, convolutions, whose rows are the patches that they see, and norms.

A convolution's output at a place is its weight times the patch around that place, so that its gradient is a sum of
outer products as a linear layer's is (Chellapilla, Puri & Simard 2006; Rochette, Manoel & Tramel 2019).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from astrofed.client.privacy.gradients import UnitLoss, Units

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Multiplying = nn.Linear | Convolution | nn.LayerNorm
Tap = Callable[[Multiplying, Tensor], Tensor]
"""Of a layer and its input makes its output."""


def sizes(layer: Multiplying) -> tuple[int, int]:
    """Return how many numbers a row has that goes in, and one that comes out."""
    out = layer.weight.shape[0]
    return layer.weight.numel() // out, out


def multiplied(layer: Multiplying, given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what a layer would put out with this weight and this bias."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(given, weight, bias)
    if isinstance(layer, nn.LayerNorm):
        return nn.functional.layer_norm(given, layer.normalized_shape, weight, bias, layer.eps)
    made: Tensor = layer._conv_forward(given, weight, bias)
    return made


def as_batch(layer: Multiplying, given: Tensor) -> tuple[Tensor, torch.Size]:
    """Return what goes into a layer, with all axes before those of one row (of one sample) as one, and these axes."""
    if isinstance(layer, nn.LayerNorm):
        own = len(layer.normalized_shape)
    else:
        own = 1 if isinstance(layer, nn.Linear) else len(layer.kernel_size) + 1
    return given.flatten(0, -own - 1), given.shape[:-own]


def passed(layer: Multiplying, given: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a layer puts out for a batch, and what its weight multiplies: its input, which a norm has scaled."""
    if not isinstance(layer, nn.LayerNorm):
        return multiplied(layer, given, layer.weight, layer.bias), given.detach()
    output, mean, scale = torch.native_layer_norm(given, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
    return output, (given.detach() - mean) * scale


def as_rows(layer: nn.Linear | Convolution, given: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """Return what goes into a layer and what comes out as rows, [unit, row, feature] each.

    `given` and `output` [unit, …] are as the layer has them for every single unit.
    """
    units, (columns, out) = len(given), sizes(layer)
    if isinstance(layer, nn.Linear):
        return given.reshape(units, -1, columns), output.reshape(units, -1, out)
    places = len(layer.kernel_size)
    seen = _patches(layer, given.flatten(0, given.ndim - places - 2))
    by_place = output.flatten(output.ndim - places).transpose(-1, -2)
    return seen.reshape(units, -1, columns), by_place.reshape(units, -1, out)


def _patches(layer: Convolution, given: Tensor) -> Tensor:
    """Return the patches [sample, place, channel · kernel] of samples [sample, channel, …]."""
    dimensions, margins = len(layer.kernel_size), [int(size) for size in layer.padding]
    seen = nn.functional.pad(given, [size for size in reversed(margins) for _ in range(2)])
    for axis, (size, step) in enumerate(zip(layer.kernel_size, layer.stride, strict=True), start=2):
        seen = seen.unfold(axis, size, step)
    return seen.movedim(1, dimensions + 1).flatten(dimensions + 1).flatten(1, dimensions)


def passed_once(model: nn.Module, loss: UnitLoss, unit: Units, *, convolutions: bool) -> dict[str, torch.Size]:
    """Name the layers that one unit [1, …] passes once, with the shape of their output; by no other way do their
    weights reach the loss.

    Weights can also stand in a penalty, be tied to another layer's, or be used by a function directly. Layers run on
    detached weights here: what gradient there still is came by another way.
    """
    named = {
        name: layer
        for name, layer in model.named_modules()
        if _multiplies(layer, convolutions) and all(p.requires_grad for p in layer.parameters())
    }
    weights = [p for layer in named.values() for p in layer.parameters()]
    shapes: dict[int, list[torch.Size]] = {}
    strange: set[int] = set()  # layers that were run on other weights than their own, as `functional_call` can do

    def detached(layer: Multiplying, given: Tensor) -> Tensor:
        if not {id(p) for p in (layer.weight, layer.bias) if p is not None} <= {id(p) for p in weights}:
            strange.add(id(layer))
        bias = layer.bias.detach() if layer.bias is not None else None
        output = multiplied(layer, given, layer.weight.detach(), bias)
        shapes.setdefault(id(layer), []).append(output.shape)
        return output

    if not weights:
        return {}
    with torch.enable_grad(), tapped(list(named.values()), detached):
        value = loss(model, unit)
        other = torch.autograd.grad(value, weights, allow_unused=True) if value.requires_grad else [None] * len(weights)
    elsewhere = {id(p) for p, found in zip(weights, other, strict=True) if found is not None}
    tied = {p for p in map(id, weights) if list(map(id, weights)).count(p) > 1}
    return {
        name: shapes[id(layer)][0]
        for name, layer in named.items()
        if len(shapes.get(id(layer), [])) == 1
        and id(layer) not in strange
        and not {id(p) for p in layer.parameters()} & (elsewhere | tied)
    }


def _multiplies(layer: nn.Module, convolutions: bool) -> bool:
    if type(layer) is nn.Linear:
        return True
    if type(layer) is nn.LayerNorm:
        return layer.elementwise_affine
    if not convolutions or type(layer) not in CONVOLUTIONS:
        return False
    assert isinstance(layer, Convolution)
    plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return plain and all(step == 1 for step in layer.dilation)


@contextmanager
def tapped(layers: Sequence[Multiplying], tap: Tap) -> Iterator[None]:
    """Have a tap in the place of each of these layers' `forward` for a block."""

    def forward(layer: Multiplying) -> Callable[[Tensor], Tensor]:
        return lambda input: tap(layer, input)

    for layer in layers:
        layer.forward = forward(layer)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
