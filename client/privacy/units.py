"""Privacy units to train on: what a step draws from, and the gradients of those that it drew, a few at a time.

A unit may hold one sample or many: its loss is the mean of its own samples' losses. Units of equal shape stand in
tensors (`Rows`); a unit that is large, or unlike the others, comes in parts (`Parts`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from astrofed.client.privacy.factored import Factored
from astrofed.client.privacy.gradients import (
    Form,
    Gradients,
    OneByOne,
    Together,
    UnitLoss,
    Units,
    WrittenOut,
    WrongUnitGradients,
    gradient,
)

Chosen = NDArray[np.intp]
P = TypeVar("P")
IN_MEMORY = 256 * 2**20  # bytes of gradients at once, where the plan doesn't say how many units
LARGE = 2**20  # bytes that layers put out for one unit, from which on units are taken one by one on a CPU
CLOSE = 1e-3  # relative; forms of gradients that differ by more are not of the same thing
ROUNDING = 1e-6  # of the whole gradient: differences in one parameter that float32 makes


class Population(Protocol):
    """A site's privacy units."""

    def __len__(self) -> int:
        """How many units there are."""
        ...

    def gradients(self, model: nn.Module, chosen: Chosen) -> Iterator[Gradients]:
        """Yield the gradients of the chosen units [index], each in one of the pieces."""
        ...


class Rows:
    """Units of equal shape, one row each of all `tensors`."""

    def __init__(self, tensors: Units, loss: UnitLoss, micro_batch: int | None = None) -> None:
        """`micro_batch`: units whose gradients are taken at once."""
        self._tensors, self._loss, self._size = tensors, loss, micro_batch
        self._form: Form | None = None

    def __len__(self) -> int:
        return len(self._tensors[0])

    def gradients(self, model: nn.Module, chosen: Chosen) -> Iterator[Gradients]:
        """See `Population`."""
        if not len(chosen):
            return
        form = self._form = self._form or cheapest_form(model, self._batch(chosen[:2]), self._loss)
        size = self._size = self._size or _at_once(form, model)
        for start in range(0, len(chosen), size):
            yield form(model, self._batch(chosen[start : start + size]), self._loss)

    def _batch(self, chosen: Chosen) -> Units:
        first, last = int(chosen[0]), int(chosen[-1])
        if np.array_equal(chosen, np.arange(first, last + 1)):  # neighbours, as one unit or all of them: no copy
            return tuple(tensor[first : last + 1] for tensor in self._tensors)
        rows = torch.from_numpy(chosen)
        return tuple(tensor[rows] for tensor in self._tensors)


class Parts(Generic[P]):
    """Units that come in parts: a unit's loss is the sum of `loss` over its parts, of which one is in memory."""

    def __init__(self, units: Sequence[Callable[[], Iterable[P]]], loss: Callable[[nn.Module, P], Tensor]) -> None:
        """`units`: for each, what gives its parts anew in every step."""
        self._units, self._loss = units, loss

    def __len__(self) -> int:
        return len(self._units)

    def gradients(self, model: nn.Module, chosen: Chosen) -> Iterator[Gradients]:
        """See `Population`."""
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for index in chosen.tolist():
            total = [torch.zeros_like(weight) for weight in weights]
            for part in self._units[index]():
                for own, more in zip(total, gradient(self._loss(model, part), weights), strict=True):
                    own += more
            yield WrittenOut([own[None] for own in total])


def cheapest_form(model: nn.Module, batch: Units, loss: UnitLoss) -> Form:
    """Return the cheapest form of gradients that is right for the model, tried on up to two units of `batch`.

    In a small network of convolutions writing gradients out together took 1.7 times plain training's time, one by one
    10; in the datacube network 1.5 and 1.4, with twice and a quarter of plain's memory; in a wide perceptron 46 and 18,
    factored 1.8 (one thread, noise left out).
    """
    few, one = tuple(tensor[:2] for tensor in batch), tuple(tensor[:1] for tensor in batch)
    large = next(model.parameters()).is_cpu and _outputs(model, one, loss) >= LARGE
    factored = Factored(model, loss, one, convolutions=not large)
    forms: tuple[Form, ...] = (factored,) if factored.worthwhile(model) else ()
    if not large:
        forms = (*forms, Together())
    for form in forms:
        try:
            if _agrees(form, model, few, loss):
                form(model, few, loss)  # in the mode that the model trains in
                return form
        except (RuntimeError, WrongUnitGradients):  # torch can't vectorise it
            continue
    return OneByOne()


def _at_once(form: Form, model: nn.Module) -> int:
    """Return the units of which gradients fit in memory; in the form that takes one at a time, one."""
    if isinstance(form, OneByOne):
        return 1
    return max(1, IN_MEMORY // max(1, form.numbers(model) * next(model.parameters()).element_size()))


def _outputs(model: nn.Module, unit: Units, loss: UnitLoss) -> int:
    """Return how many bytes the innermost layers put out for one unit [1, …]."""
    found = 0

    def count(_: nn.Module, __: object, output: object) -> None:
        nonlocal found
        found += output.nbytes if isinstance(output, Tensor) else 0

    handles = [layer.register_forward_hook(count) for layer in model.modules() if not list(layer.children())]
    try:
        loss(model, unit)
    finally:
        for handle in handles:
            handle.remove()
    return found


def padded(keys: NDArray[np.str_]) -> tuple[Tensor, Tensor]:
    """Return [unit, sample] which rows belong to each of the units that `keys` [row] names, and which of them count.

    Units have as many samples as the largest; places left over hold row 0 and don't count.
    """
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    place = np.arange(len(keys)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.zeros((len(counts), counts.max(initial=0)), dtype=np.int64)
    counted = np.zeros(rows.shape, dtype=np.bool_)
    rows[inverse[order], place], counted[inverse[order], place] = order, True
    return torch.from_numpy(rows), torch.from_numpy(counted)


def _agrees(form: Form, model: nn.Module, few: Units, loss: UnitLoss) -> bool:
    """Whether the first unit's gradient is that of differentiating it alone; without dropout, which would differ."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        alone = OneByOne()(model, tuple(tensor[:1] for tensor in few), loss)
        found = form(model, few, loss)
    finally:
        for module, mode in modes:
            module.training = mode
    first = torch.zeros_like(found.squares)
    first[0] = 1.0
    sums = [torch.zeros_like(right[0]) for right in alone.gradients]
    found.add_weighted(first, sums)
    pairs = [(own, right[0]) for own, right in zip(sums, alone.gradients, strict=True)]
    whole = float(torch.stack([right.norm() for _, right in pairs]).norm())
    # A key's bias in attention has a gradient of zero, of which only rounding is left, in each form another.
    return all(float((own - right).norm()) <= CLOSE * float(right.norm()) + ROUNDING * whole for own, right in pairs)
