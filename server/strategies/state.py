"""A strategy's own state between rounds, as arrays and plain data, so that a resumed run goes on as if never stopped.

A strategy that has `state_dict` and `load_state_dict` speaks for itself. Of any other, all attributes that consist of
arrays, Flower's array records, numbers, texts, None, and lists, tuples and dictionaries of these are kept; they include
the moments of FedAdam and its kin and the momentum of FedAvgM. Other attributes (functions, other objects) can't be
told from constants and are not kept.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from astrofed.shared.arrays import from_numpy, to_numpy
from astrofed.shared.errors import UserMistake

Arrays = dict[str, NDArray[Any]]
Scalars = dict[str, Any]  # what JSON can hold
_PLAIN = (bool, int, float, str, type(None))


class BadStrategyState(UserMistake):
    """A strategy's `state_dict` returns something other than named arrays."""


@runtime_checkable
class Stateful(Protocol):
    """A strategy that says itself what has to outlive a stop."""

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return the state as named arrays."""

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take back what `state_dict` returned."""


class _NotKept(Exception):
    """A value that is neither array nor plain data."""


def strategy_state(strategy: Strategy) -> tuple[Arrays, Scalars]:
    """Return a strategy's state: arrays by name, and plain data that refers to them.

    Raises:
        BadStrategyState: see there.
    """
    if isinstance(strategy, Stateful):
        state = strategy.state_dict()
        if not isinstance(state, dict) or not all(isinstance(value, np.ndarray) for value in state.values()):
            raise BadStrategyState(f"{type(strategy).__name__}.state_dict must return a dict of numpy arrays")
        return dict(state), {}
    arrays: Arrays = {}
    scalars: Scalars = {}
    for name, value in vars(strategy).items():
        own: Arrays = {}
        try:
            scalars[name] = _pack(value, name, own)
        except _NotKept:
            continue
        arrays.update(own)
    return arrays, scalars


def restore_state(strategy: Strategy, arrays: Mapping[str, NDArray[Any]], scalars: Mapping[str, Any]) -> None:
    """Give a newly built strategy the state that `strategy_state` returned."""
    if isinstance(strategy, Stateful):
        strategy.load_state_dict(arrays)
        return
    for name, packed in scalars.items():
        setattr(strategy, name, _unpack(packed, arrays))


def _pack(value: Any, name: str, arrays: Arrays) -> Any:
    """Return a value as plain data; arrays go to `arrays`, each under a name of its own that takes its place."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise _NotKept
        key = f"{name}/{len(arrays)}"
        arrays[key] = array
        return {"array": key}
    if isinstance(value, ArrayRecord):
        return {"record": _pack(to_numpy(value), name, arrays)}
    if isinstance(value, Array):
        return {"wire": _pack(value.numpy(), name, arrays)}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_pack(item, name, arrays) for item in value]}
    if type(value) is dict and all(type(key) in _PLAIN for key in value):
        return {"dict": [[key, _pack(item, name, arrays)] for key, item in value.items()]}
    raise _NotKept


def _unpack(packed: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "array":
        return arrays[content]
    if kind == "record":
        return from_numpy(_unpack(content, arrays))
    if kind == "wire":
        return Array(_unpack(content, arrays))
    if kind == "dict":
        return {key: _unpack(item, arrays) for key, item in content}
    items = [_unpack(item, arrays) for item in content]
    return tuple(items) if kind == "tuple" else items
