"""Attacks of colluders that go as far from the honest mean as the honest ones' own distances allow.

Below, w is the global model and u_i = w_i - w the honest updates, with mean mu and standard deviation sigma in each
coordinate.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal

import numpy as np

from astrofed.server.aggregation.base import squared_distances
from astrofed.shared.plan import Section
from astrofed.simulations.attack import Floats, Scene
from astrofed.simulations.attacks_colluding import Colluding, centred_gram

Direction = Literal["unit", "deviation", "sign"]


class _Hiding(Colluding):
    """Sends mu + gamma p along a direction p, with gamma as large as keeps it within the honest ones' distances."""

    class Options(Section):
        """`direction`: p is -mu / ||mu|| ("unit"), -sigma ("deviation") or -sign(mu) ("sign")."""

        direction: Direction = "deviation"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._direction = options.direction

    def collude(self, scene: Scene) -> Mapping[str, Floats]:
        """Return the model as far out as it stays hidden."""
        means = {name: scene.mean(name) for name in scene.floats}
        along = _direction(scene, means, self._direction)
        gaps, pulls = np.zeros(len(scene.honest)), np.zeros(len(scene.honest))
        for name in scene.floats:
            offsets = np.stack([(means[name] - scene.update(model, name)).reshape(-1) for model in scene.honest])
            gaps += (offsets**2).sum(axis=1)
            pulls += offsets @ along[name].reshape(-1)
        length = sum(float((value**2).sum()) for value in along.values())
        gamma = self.reach(gaps, pulls, length, squared_distances(centred_gram(scene))) if length > 0 else 0.0
        return scene.moved(lambda name: means[name] + gamma * along[name])

    @abstractmethod
    def reach(self, gaps: Floats, pulls: Floats, length: float, squares: Floats) -> float:
        """Return gamma, from ||mu + gamma p - u_i||^2 = gaps_i + 2 gamma pulls_i + gamma^2 length.

        `squares` (n, n) are the squared distances between the honest updates.
        """


class MinMax(_Hiding):
    """Goes as far from the honest mean as no honest update would be farther from it than two honest are apart.

    Shejwalkar & Houmansadr (2021), "Manipulating the Byzantine: optimizing model poisoning attacks and defenses for
    federated learning", NDSS, equation 8, solved exactly: max_i ||mu + gamma p - u_i|| <= max_ij ||u_i - u_j||.
    """

    def reach(self, gaps: Floats, pulls: Floats, length: float, squares: Floats) -> float:
        """Return the smallest of the participants' largest gammas."""
        return float(min(_root(length, pull, gap - squares.max()) for gap, pull in zip(gaps, pulls, strict=True)))


class MinSum(_Hiding):
    """Goes as far from the honest mean as its squared distances to the honest sum to no more than an honest one's do.

    Shejwalkar & Houmansadr (2021), equation 9, solved exactly: sum_i ||mu + gamma p - u_i||^2 <= max_i sum_j
    ||u_i - u_j||^2.
    """

    def reach(self, gaps: Floats, pulls: Floats, length: float, squares: Floats) -> float:
        """Return the largest gamma."""
        return _root(len(gaps) * length, float(pulls.sum()), float(gaps.sum() - squares.sum(axis=1).max()))


def _direction(scene: Scene, means: Mapping[str, Floats], kind: Direction) -> dict[str, Floats]:
    if kind == "deviation":
        return {name: -scene.spread(name) for name in means}
    if kind == "sign":
        return {name: -np.sign(mean) for name, mean in means.items()}
    length = float(np.sqrt(sum(float((mean**2).sum()) for mean in means.values())))
    return {name: -mean / length if length > 0 else -mean for name, mean in means.items()}


def _root(a: float, half_b: float, c: float) -> float:
    """Return the largest gamma >= 0 with a gamma^2 + 2 half_b gamma + c <= 0; 0 if there is none."""
    square = half_b**2 - a * c
    return max(0.0, (-half_b + float(np.sqrt(square))) / a) if square >= 0 else 0.0
