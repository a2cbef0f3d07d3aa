"""An attack: what a lying participant of a simulation sends in place of its honest work, or does to its own data.

Attacks are pure functions of what the attacker knows and of the plan's seed, so that an attacked run can be repeated.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from astrofed.shared.plan import Section

Arrays = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """What an attacker knows when it forges its reply of one round. Attackers collude: they see the honest replies."""

    round: int  # from 1
    reference: Arrays  # the global model that was sent
    own: Arrays  # the model that the attacker's honest work gave
    metrics: Mapping[str, float]  # of its honest work, "num-examples" among them
    honest: tuple[Arrays, ...]  # models of the honest participants that replied, in the plan's order
    attackers: int  # how many participants of this round attack
    rng: np.random.Generator  # drawn from the plan's seed, the round and the attacker's name

    @property
    def floats(self) -> list[str]:
        """Names of the arrays that are forged; counters and flags are not."""
        return [name for name, array in self.reference.items() if array.dtype.kind == "f"]

    def moved(self, change: Callable[[str], NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the global model with `change` of each float array added; other arrays are the attacker's own."""
        return {
            name: (old + change(name)).astype(old.dtype) if old.dtype.kind == "f" else self.own[name]
            for name, old in self.reference.items()
        }

    def update(self, model: Arrays, name: str) -> Floats:
        """Return what one array of a model changed of the global one."""
        return np.subtract(model[name], self.reference[name], dtype=np.float64)

    def mean(self, name: str) -> Floats:
        """Return the mean of the honest updates of one array."""
        return np.asarray(np.mean([self.update(model, name) for model in self.honest], axis=0))

    def spread(self, name: str) -> Floats:
        """Return the standard deviation, in each coordinate, of the honest updates of one array."""
        return np.asarray(np.std([self.update(model, name) for model in self.honest], axis=0))


@dataclass(frozen=True)
class Forgery:
    """What the attacker sends: a model under the global one's names, and metrics. Neither need be acceptable."""

    arrays: Arrays
    metrics: Mapping[str, float]


class Attack:
    """The base of all attacks, honest as it stands: override `forge`, or with `poisons_data` what corrupts the data."""

    class Options(Section):
        """The attack's own keys in a participant's `attack` table."""

    poisons_data: ClassVar[bool] = False
    """Whether the attack is on the attacker's own data; then its replies are sent as its training makes them."""

    def __init__(self, options: Section) -> None:
        """Keep the options, an instance of this class's `Options`."""
        self.options = options

    def forge(self, scene: Scene) -> Forgery | None:
        """Return what to send in place of the honest reply; None for nothing at all."""
        return Forgery(scene.own, scene.metrics)

    def corrupt_inputs(self, inputs: Tensor) -> Tensor:
        """Return what to train on in place of the dimensionless inputs [sample, …], of the same shape and type."""
        return inputs

    def corrupt_targets(self, targets: Tensor) -> Tensor:
        """Return what to train on in place of the standardised targets, of the same shape and type."""
        return targets
