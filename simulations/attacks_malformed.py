"""Attacks by replies that are not what was asked for: not finite, falsely counted, malformed, or not there at all."""

import math
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from astrofed.shared.plan import Fraction, Positive, Section
from astrofed.simulations.attack import Attack, Forgery, Scene

Kind = Literal["renamed", "missing", "extra", "shape", "complex", "integer", "uncounted", "empty"]


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
        arrays = scene.moved(lambda name: -self._scale * scene.update(scene.own, name))
        return Forgery(arrays, {**scene.metrics, "num-examples": self._count})


class Malformed(Attack):
    """Sends its honest work in a form that breaks what trusts it: other names, shapes, types, or nothing in it."""

    class Options(Section):
        """`kind`: what is wrong, or "any" for another thing each round."""

        kind: Kind | Literal["any"] = "any"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._kind = options.kind

    def forge(self, scene: Scene) -> Forgery:
        """Return the malformed reply."""
        kinds = get_args(Kind)
        kind = kinds[int(scene.rng.integers(len(kinds)))] if self._kind == "any" else self._kind
        arrays, metrics = dict(scene.own), dict(scene.metrics)
        name = next(iter(arrays))
        if kind == "renamed":
            arrays[name + "?"] = arrays.pop(name)
        elif kind == "missing":
            del arrays[name]
        elif kind == "extra":
            arrays["extra"] = np.zeros(3, np.float32)
        elif kind == "shape":
            arrays[name] = np.append(arrays[name].reshape(-1), 0)
        elif kind == "complex":
            arrays[name] = arrays[name].astype(np.complex64)
        elif kind == "integer":
            arrays[name] = arrays[name].astype(np.int8)
        elif kind == "uncounted":
            metrics.clear()
        else:
            arrays.clear()
        return Forgery(arrays, metrics)


class DropOut(Attack):
    """Trains but sends nothing, from some round on or now and then: who waits for it, waits in vain."""

    class Options(Section):
        """`probability` of being silent in a round; `after`: the round after which it begins."""

        probability: Fraction = 1.0
        after: Annotated[int, Field(ge=0)] = 0

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._probability, self._after = options.probability, options.after

    def forge(self, scene: Scene) -> Forgery | None:
        """Return nothing, or the honest reply."""
        silent = scene.round > self._after and scene.rng.random() < self._probability
        return None if silent else super().forge(scene)
