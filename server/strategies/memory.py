"""What a robust strategy remembers between rounds: the model's last step, and each participant's momentum.

Both are part of the checkpoint, so that a resumed run goes on exactly as one that was not stopped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astrofed.server.screening import LARGEST

Arrays = Mapping[str, NDArray[Any]]


class Step:
    """The change that the model took in the last round that changed it; none before the first."""

    def __init__(self) -> None:
        self._step: dict[str, NDArray[Any]] = {}

    def remember(self, old: Arrays, new: Arrays) -> None:
        """Keep the change from the old model to the new."""
        self._step = {name: _difference(new[name], old[name]) for name in _floats(old)}

    def onward(self, reference: Arrays) -> dict[str, NDArray[Any]] | None:
        """Return the model moved on by the same step again; None if there was no step yet."""
        if not self._step:
            return None
        return {name: _moved(array, self._step[name]) if name in self._step else array
                for name, array in reference.items()}  # fmt: skip

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return the step as named arrays."""
        return {f"step/{name}": array for name, array in self._step.items()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take back what `state_dict` returned."""
        self._step = {key.removeprefix("step/"): array for key, array in state.items() if key.startswith("step/")}


class Momentum:
    """A running mean of each participant's updates: m_i <- beta m_i + (1 - beta) u_i, and at first m_i = u_i.

    Karimireddy et al. (2021), "Learning from history for Byzantine robust optimization", ICML, section 5: averaging
    over time makes honest updates vary less and colluders' small but steady pull stand out. In the paper the client
    keeps m_i and sends it; here the server keeps it, which is the same and works with any client. It costs memory: one
    more model for each participant. Who sends no usable reply in a round keeps its own as it is.
    """

    def __init__(self, beta: float) -> None:
        self._beta = beta
        self._means: dict[str, dict[str, NDArray[Any]]] = {}

    def missing(self, names: Sequence[str]) -> list[str]:
        """Say who has momentum but no reply among these."""
        absent = [name for name in self._means if name not in names]
        return [f"momentum of {name} is kept as it was: no usable reply this round" for name in absent]

    def smooth(self, reference: Arrays, models: Mapping[str, Arrays]) -> list[dict[str, NDArray[Any]]]:
        """Take in the participants' models; return the model moved by each one's momentum, in their order."""
        return [self._smooth(reference, name, model) for name, model in models.items()]

    def _smooth(self, reference: Arrays, name: str, model: Arrays) -> dict[str, NDArray[Any]]:
        before = self._means.get(name)
        own: dict[str, NDArray[Any]] = {}
        for key in _floats(reference):
            update = _difference(model[key], reference[key])
            mean = update if before is None else self._beta * before[key] + (1 - self._beta) * update
            own[key] = np.clip(mean, -_most(reference[key]), _most(reference[key])).astype(reference[key].dtype)
        self._means[name] = own
        return {key: _moved(reference[key], own[key]) if key in own else model[key] for key in reference}

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return all momentum as named arrays."""
        return {
            f"momentum/{name}/{key}": array for name, arrays in self._means.items() for key, array in arrays.items()
        }

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take back what `state_dict` returned."""
        self._means = {}
        for full, array in state.items():
            kind, _, rest = full.partition("/")
            if kind == "momentum":
                name, _, key = rest.partition("/")  # participants' names hold no slash
                self._means.setdefault(name, {})[key] = array


def _floats(arrays: Arrays) -> list[str]:
    return [name for name, array in arrays.items() if array.dtype.kind == "f"]


def _difference(new: NDArray[Any], old: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(np.subtract(new, old, dtype=np.float64))


def _moved(array: NDArray[Any], change: NDArray[Any]) -> NDArray[Any]:
    moved = np.add(array, change, dtype=np.float64)
    return np.asarray(np.clip(moved, -_most(array), _most(array)).astype(array.dtype))


def _most(array: NDArray[Any]) -> float:
    """Return the largest value that may stand in an array, screening's bound or that of a narrower type."""
    return min(LARGEST, float(np.finfo(array.dtype).max))
