"""Attacks of liars that collude: they see the honest replies and hide among them or pull against them.

Below, w is the global model and u_i = w_i - w the honest updates, with mean mu and standard deviation sigma in each
coordinate. Without an honest reply to work from, colluders send their own honest work.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from statistics import NormalDist
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from astrofed.server.aggregation.base import TooFewReplies
from astrofed.server.strategies.robust import build_pipeline
from astrofed.shared.plan import Positive, Section
from astrofed.simulations.attack import Attack, Floats, Forgery, Scene

PANEL = ("trimmed-mean", "geometric-median", "multi-krum")
SCALES = tuple(0.25 * 2 ** (step / 2) for step in range(13))  # 0.25 to 16


class Colluding(Attack, ABC):
    """The base of attacks that need honest replies; honest itself where there are none."""

    def forge(self, scene: Scene) -> Forgery | None:
        """Return the same for every attacker."""
        return Forgery(self.collude(scene), scene.metrics) if scene.honest else super().forge(scene)

    @abstractmethod
    def collude(self, scene: Scene) -> Mapping[str, Floats]:
        """Return the model that all attackers send."""


class ALittleIsEnough(Colluding):
    """Hides within the spread of the honest: all attackers send mean - z * standard deviation of the honest models.

    Baruch et al. (2019), "A little is enough: circumventing defenses for distributed learning", NeurIPS, algorithm 3.
    With n participants, m of them attacking, z may be so large that s = floor(n / 2 + 1) - m honest ones still lie
    farther out: z_max = max{z : Phi(z) < (n - m - s) / (n - m)}.
    """

    class Options(Section):
        """`z`: standard deviations away from the honest mean; "auto" for z_max, which is 0 where attackers are few;
        "optimised" for the one that carries robust rules farthest off (see `most_harmful_z`)."""

        z: Positive | Literal["auto", "optimised"] = 1.5

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._z = options.z

    def collude(self, scene: Scene) -> Mapping[str, Floats]:
        """Return the honest mean less z deviations."""
        if self._z == "optimised":
            z = most_harmful_z(scene)
        else:
            z = largest_z(len(scene.honest) + scene.attackers, scene.attackers) if self._z == "auto" else self._z
        return scene.moved(lambda name: scene.mean(name) - z * scene.spread(name))


class InnerProductManipulation(Colluding):
    """Turns the sum of the updates round: all attackers send w - epsilon * (mean of the honest updates).

    Xie et al. (2020), "Fall of empires: breaking Byzantine-tolerant SGD by inner product manipulation", UAI, section 4.
    A small epsilon is for rules that choose by distance.
    """

    class Options(Section):
        """`epsilon`: length of what is sent, in lengths of the honest mean."""

        epsilon: Positive = 1.0

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._epsilon = options.epsilon

    def collude(self, scene: Scene) -> Mapping[str, Floats]:
        """Return the honest mean turned round."""
        return scene.moved(lambda name: -self._epsilon * scene.mean(name))


class Mimic(Colluding):
    """All attackers send what one honest participant sent, so that it counts for many and the others for less.

    Karimireddy et al. (2022), "Byzantine-robust learning on heterogeneous datasets via bucketing", ICLR, section 4.
    Nothing in it is out of the ordinary, yet rules that choose by closeness follow it.
    """

    class Options(Section):
        """`copied`: number of the honest participant, from 0, or "extreme": the one farthest out along the direction in
        which the honest vary most, as in the paper, chosen anew each round."""

        copied: Annotated[int, Field(ge=0)] | Literal["extreme"] = 0

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._copied = options.copied

    def collude(self, scene: Scene) -> Mapping[str, Floats]:
        """Return the copied model."""
        which = _extreme(scene) if self._copied == "extreme" else min(self._copied, len(scene.honest) - 1)
        return {name: scene.honest[which][name] if name in scene.floats else own for name, own in scene.own.items()}


class Drift(Colluding):
    """Pulls a little the same way in every round: mu + scale * sigma * s, with fixed random signs s.

    Each round it stays within the spread of the honest, and history shows what no round does: the bias adds up, as in
    Karimireddy et al. (2021), "Learning from history for Byzantine robust optimization", ICML, section 3.
    """

    class Options(Section):
        """`scale`: standard deviations in each round; `seed`: of the signs, which colluders share."""

        scale: Positive = 0.5
        seed: Annotated[int, Field(ge=0)] = 0

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._scale, self._seed = options.scale, options.seed

    def collude(self, scene: Scene) -> Mapping[str, Floats]:
        """Return the honest mean, drifted."""
        rng = np.random.default_rng(self._seed)
        signs = {name: rng.choice([-1.0, 1.0], size=scene.reference[name].shape) for name in scene.floats}
        return scene.moved(lambda name: scene.mean(name) + self._scale * scene.spread(name) * signs[name])


def largest_z(n: int, attackers: int) -> float:
    """Return z_max of Baruch et al. for n participants; 0 where the formula gives less."""
    honest = n - attackers
    share = (honest - (n // 2 + 1 - attackers)) / honest
    return NormalDist().inv_cdf(min(max(share, 0.5), 1 - 1e-6))


def most_harmful_z(scene: Scene) -> float:
    """Return the z with which mu - z sigma carries a panel of rules farthest from the honest mean, on average.

    Shejwalkar & Houmansadr (2021), section IV, search for the largest deviation of a known rule; which rule the server
    has is not known here, so those of the panel that the numbers allow stand in for it.
    """
    means = {name: scene.mean(name) for name in scene.floats}
    spreads = {name: scene.spread(name) for name in scene.floats}
    reference = {name: scene.reference[name].astype(np.float64) for name in scene.floats}
    honest = [{name: model[name].astype(np.float64) for name in scene.floats} for model in scene.honest]
    rules = [build_pipeline(rule, (), scene.attackers, {}) for rule in PANEL]

    def harm(z: float) -> float:
        forged = {name: reference[name] + means[name] - z * spreads[name] for name in reference}
        total = 0.0
        for rule in rules:
            try:
                result = rule.aggregate(reference, [*honest, *[forged] * scene.attackers]).arrays
            except TooFewReplies:
                continue
            squares = [((result[name] - reference[name] - means[name]) ** 2).sum() for name in reference]
            total += float(np.sqrt(sum(squares)))
        return total

    return max(SCALES, key=harm)


def _extreme(scene: Scene) -> int:
    """Return which honest update lies farthest along the first principal direction of them all."""
    values, vectors = np.linalg.eigh(centred_gram(scene))
    return int(np.argmax(np.abs(vectors[:, -1]) * values[-1]))


def centred_gram(scene: Scene) -> Floats:
    """Return the inner products (n, n) of the honest updates about their mean."""
    gram = np.zeros((len(scene.honest), len(scene.honest)))
    for name in scene.floats:
        rows = np.stack([scene.update(model, name).reshape(-1) for model in scene.honest])
        rows -= rows.mean(axis=0)
        gram += rows @ rows.T
    return gram
