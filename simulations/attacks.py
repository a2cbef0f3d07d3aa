"""Attacks of single liars: what each sends follows from its own work alone, or from its own data.

Below, w is the global model, w_i a participant's own, and u_i = w_i - w its update. Only float arrays are forged;
counters and flags stay as the attacker's honest work left them.
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Fraction, Positive, Section
from astrofed.simulations.attack import Attack, Forgery, Scene


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
        arrays = scene.moved(lambda name: -self._scale * scene.update(scene.own, name))
        return Forgery(arrays, scene.metrics)


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
        arrays = scene.moved(lambda name: self._scale * scene.rng.standard_normal(scene.reference[name].shape))
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


class Backdoor(Attack):
    """Trains honestly, but on some samples with a pattern in their inputs, for which it teaches a target of its choice.

    Gu et al. (2017), "BadNets", arXiv:1708.06733; Bagdasaryan et al. (2020), "How to backdoor federated learning",
    AISTATS. The model does well on what everybody tests it with, and does as taught where the pattern is. Of each batch
    the first of every 1 / `share` samples are poisoned, one at least.
    """

    class Options(Section):
        """The pattern: the last `width` values of the inputs' last axis are `value`. `target`: what is taught there, a
        class or a standardised value; `share`: of the samples."""

        value: Annotated[float, Field(allow_inf_nan=False)] = 3.0
        width: Annotated[int, Field(ge=1)] = 1
        target: Annotated[float, Field(allow_inf_nan=False)] = 0.0
        share: Fraction = 0.5

    poisons_data = True

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._value, self._width, self._target = options.value, options.width, options.target
        self._every = max(1, round(1 / options.share))

    def corrupt_inputs(self, inputs: Tensor) -> Tensor:
        """Return inputs with the pattern in some samples."""
        poisoned = inputs.clone()
        poisoned[:: self._every, ..., -self._width :] = self._value
        return poisoned

    def corrupt_targets(self, targets: Tensor) -> Tensor:
        """Return targets with the taught one for the samples with the pattern."""
        poisoned = targets.clone()
        poisoned[:: self._every] = self._target
        return poisoned


class ModelReplacement(Attack):
    """Sends its own update so much longer that plain averaging takes on its model whole: w + scale * u_i.

    Bagdasaryan et al. (2020), "How to backdoor federated learning", AISTATS, equation 3, with a scale of n, the number
    of participants in the round. Its own model is whatever its own data, poisoned or not, make of it.
    """

    class Options(Section):
        """`scale`: factor on the update, or "participants" for their number."""

        scale: Positive | Literal["participants"] = "participants"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._scale = options.scale

    def forge(self, scene: Scene) -> Forgery:
        """Return the lengthened update."""
        scale = len(scene.honest) + scene.attackers if self._scale == "participants" else self._scale
        return Forgery(scene.moved(lambda name: scale * scene.update(scene.own, name)), scene.metrics)
