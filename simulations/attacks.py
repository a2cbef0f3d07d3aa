"""The attacks that ship. Below, w is the global model, w_i a participant's own, and u_i = w_i - w its update.

Only float arrays are forged; counters and flags stay as the attacker's honest work left them.
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Fraction, Positive, Section
from astrofed.simulations.attack import Arrays, Attack, Forgery, Scene

Floats = NDArray[np.float64]


class NumberOfClassesUnknown(UserMistake):
    """Labels of classes should be flipped, but the attack was not told how many classes there are."""


class SignFlip(Attack):
    """Sends the opposite of its own update, scaled: w - scale * u_i.

    Li et al. (2019), "RSA: Byzantine-robust stochastic aggregation methods for distributed learning from heterogeneous
    datasets", AAAI, sign-flipping attack.
    """

    class Options(Section):
        """`scale`: length of what is sent, in lengths of the honest update."""

        scale: Positive = 1.0

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._scale = options.scale

    def forge(self, scene: Scene) -> Forgery:
        """Return the opposite of the honest update."""
        return Forgery(_flipped(scene, self._scale), scene.metrics)


class Gaussian(Attack):
    """Sends noise as its update: w + N(0, scale^2) in each coordinate.

    Blanchard et al. (2017), "Machine learning with adversaries: Byzantine tolerant gradient descent", NeurIPS,
    evaluation, "Gaussian".
    """

    class Options(Section):
        """`scale`: standard deviation of the noise, in units of the weights."""

        scale: Positive = 1.0

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._scale = options.scale

    def forge(self, scene: Scene) -> Forgery:
        """Return noise about the global model."""
        arrays = _moved(scene, lambda name: self._scale * scene.rng.standard_normal(scene.reference[name].shape))
        return Forgery(arrays, scene.metrics)


class LabelFlip(Attack):
    """Trains honestly on wrong targets: standardised values change sign, class c of C becomes C - 1 - c.

    Tolpegin et al. (2020), "Data poisoning attacks against federated learning systems", ESORICS.
    """

    class Options(Section):
        """`classes`: how many classes integer targets have; not needed for targets that are numbers."""

        classes: Annotated[int, Field(ge=2)] | None = None

    poisons_data = True

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._classes = options.classes

    def corrupt_targets(self, targets: Tensor) -> Tensor:
        """Return flipped targets.

        Raises:
            NumberOfClassesUnknown: the targets are integers and `classes` is not given.
        """
        if targets.is_floating_point():
            return -targets
        if self._classes is None:
            raise NumberOfClassesUnknown("attack 'label-flip': the targets are classes; give their number as `classes`")
        return self._classes - 1 - targets


class NotANumber(Attack):
    """Sends its honest model with values that are not finite in it: one of them is enough to ruin a plain mean."""

    class Options(Section):
        """`value`: what to send; `share`: in how much of each array, one coordinate at least."""

        value: Literal["nan", "inf"] = "nan"
        share: Fraction = 1.0

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._value, self._share = float(options.value), options.share

    def forge(self, scene: Scene) -> Forgery:
        """Return the honest model with randomly chosen coordinates replaced."""
        arrays = {name: self._spoil(array, scene.rng) for name, array in scene.own.items()}
        return Forgery(arrays, scene.metrics)

    def _spoil(self, array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        if array.dtype.kind != "f":
            return array
        spoilt = array.copy(order="C")
        spoilt.reshape(-1)[rng.permutation(array.size)[: math.ceil(self._share * array.size)]] = self._value
        return spoilt


class InflatedCount(Attack):
    """Claims to have trained on `count` examples, so as to own a mean weighted by them, and sends w - scale * u_i."""

    class Options(Section):
        """`count`: the examples claimed; `scale`: as for sign-flip."""

        count: Annotated[int, Field(ge=1, lt=2**63)] = 10**15
        scale: Positive = 1.0

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._count, self._scale = options.count, options.scale

    def forge(self, scene: Scene) -> Forgery:
        """Return the opposite of the honest update, under a false number of examples."""
        return Forgery(_flipped(scene, self._scale), {**scene.metrics, "num-examples": self._count})


class ALittleIsEnough(Attack):
    """Hides within the spread of the honest: all attackers send mean - z * standard deviation of the honest models.

    Baruch et al. (2019), "A little is enough: circumventing defenses for distributed learning", NeurIPS, algorithm 3.
    With n participants, m of them attacking, z may be so large that s = floor(n / 2 + 1) - m honest ones still lie
    farther out: z_max = max{z : Phi(z) < (n - m - s) / (n - m)}. Without an honest reply to hide among, it is honest.
    """

    class Options(Section):
        """`z`: standard deviations away from the honest mean; "auto" for z_max, which is 0 where attackers are few."""

        z: Positive | Literal["auto"] = 1.5

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._z = options.z

    def forge(self, scene: Scene) -> Forgery:
        """Return the same model for every attacker."""
        if not scene.honest:
            return super().forge(scene)
        z = largest_z(len(scene.honest) + scene.attackers, scene.attackers) if self._z == "auto" else self._z
        return Forgery(_moved(scene, lambda name: _mean(scene, name) - z * _spread(scene, name)), scene.metrics)


class InnerProductManipulation(Attack):
    """Turns the sum of the updates round: all attackers send w - epsilon * (mean of the honest updates).

    Xie et al. (2020), "Fall of empires: breaking Byzantine-tolerant SGD by inner product manipulation", UAI, section 4.
    A small epsilon is for rules that choose by distance. Without an honest reply to turn round, it is honest.
    """

    class Options(Section):
        """`epsilon`: length of what is sent, in lengths of the honest mean."""

        epsilon: Positive = 1.0

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._epsilon = options.epsilon

    def forge(self, scene: Scene) -> Forgery:
        """Return the same model for every attacker."""
        if not scene.honest:
            return super().forge(scene)
        return Forgery(_moved(scene, lambda name: -self._epsilon * _mean(scene, name)), scene.metrics)


def largest_z(n: int, attackers: int) -> float:
    """Return z_max of Baruch et al. for n participants; 0 where the formula gives less."""
    honest = n - attackers
    share = (honest - (n // 2 + 1 - attackers)) / honest
    return NormalDist().inv_cdf(min(max(share, 0.5), 1 - 1e-6))


def _flipped(scene: Scene, scale: float) -> Arrays:
    return _moved(scene, lambda name: -scale * _update(scene.own, scene, name))


def _moved(scene: Scene, change: Callable[[str], Floats]) -> dict[str, NDArray[Any]]:
    """Return the global model with `change` of each float array added; other arrays are the attacker's own."""
    return {
        name: (old + change(name)).astype(old.dtype) if old.dtype.kind == "f" else scene.own[name]
        for name, old in scene.reference.items()
    }


def _update(model: Arrays, scene: Scene, name: str) -> Floats:
    return np.subtract(model[name], scene.reference[name], dtype=np.float64)


def _mean(scene: Scene, name: str) -> Floats:
    return np.asarray(np.mean([_update(model, scene, name) for model in scene.honest], axis=0))


def _spread(scene: Scene, name: str) -> Floats:
    return np.asarray(np.std([_update(model, scene, name) for model in scene.honest], axis=0))
