"""Between what `vmap` shows a function of one unit and the tensors of all units behind it.

A layer that treats each row alike can so run as one call on all units, where `vmap` would take it apart into small
operations. torch has no public name for either way; both are what `vmap` itself is made of.
"""

from torch import Tensor
from torch._C import _functorch


def of_every_unit(given: Tensor, count: int) -> Tensor:
    """Return [unit, …] for a tensor […] inside of a `vmap` over `count` units; a unit's own stays that unit's.

    Raises:
        RuntimeError: another transformation of `torch.func` stands inside of the `vmap`.
    """
    level = _functorch.current_level()
    if level != 1:
        raise RuntimeError("a layer stands in a transformation of torch.func inside of another")
    whole, axis = _functorch._unwrap_batched(given, level)
    if axis is None:
        return given.expand(count, *given.shape)
    return whole.movedim(axis, 0) if axis else whole


def of_one_unit(every: Tensor) -> Tensor:
    """Return what `vmap` shows of [unit, …] to the function of one unit."""
    return _functorch._add_batch_dim(every, 0, _functorch.current_level())
