"""Bugs of a tree's noise, planted as the others are (`planted.py`): each leaves every single model noisy.

What they break is how the noises of a run's models hang together, or what a tree costs.
"""

from typing import Any

from astrofed.server.privacy.bounded import Sums
from astrofed.server.privacy.mechanisms import Tree
from astrofed.server.privacy.tree import TreeNoise, height
from astrofed.shared.privacy.noise import UnsafeSeededRandomness
from astrofed.simulations.audit.central import CentralCase
from astrofed.simulations.audit.planted import Planted

_advance, _release, _start = TreeNoise.advance, Tree.__call__, Tree._start


def _same_for_all(own: TreeNoise[Any]) -> list[Any]:
    own._rounds += 1
    own._nodes = own._nodes or {0: own._draw()}
    return list(own._nodes.values())


def _one_for_a_level(own: TreeNoise[Any]) -> list[Any]:
    own._rounds += 1
    if own._rounds.bit_count() == 1:  # a level's first node, which is never replaced
        own._nodes[own._rounds.bit_length() - 1] = own._draw()
    return [node for level, node in own._nodes.items() if own._rounds >> level & 1]


def _newest_alone(own: TreeNoise[Any]) -> list[Any]:
    return _advance(own)[-1:]


def _drawn_anew(own: TreeNoise[Any]) -> list[Any]:
    return [own._draw() for _ in _advance(own)]


def _shared_out(own: Tree, total: Sums, deviation: float) -> Sums:
    share = deviation / height(own._rounds)  # of √height times the noise, that over √height is left
    return _release(own, total, share)


def _first_charged_alone(own: Tree) -> None:
    later = hasattr(own, "_tree")
    _start(own)
    own.begins = not later


def _from_a_seed(own: Tree) -> None:
    _start(own)
    own._random = UnsafeSeededRandomness(7)


def _case(epsilon: float, cohorts: int, trees: int = 1, side: int = 64) -> CentralCase:
    settings = {"mechanism": "tree", "cohorts": cohorts}
    return CentralCase(
        f"trees over {cohorts} cohorts: {trees}", epsilon, side=side, rounds=trees * cohorts, settings=settings
    )


PLANTED_TREES = (
    Planted("tree: all running sums have the same noise", TreeNoise, "advance", _same_for_all, _case(2.0, 4)),
    Planted("tree: all nodes of a level have the same noise", TreeNoise, "advance", _one_for_a_level, _case(2.0, 4)),
    Planted(
        "tree: a running sum has its newest node's noise alone", TreeNoise, "advance", _newest_alone, _case(2, 256)
    ),
    Planted("tree: nodes drawn anew for each model", TreeNoise, "advance", _drawn_anew, _case(2.0, 512, side=96)),
    Planted("tree: one node's noise shared out among the nodes", Tree, "__call__", _shared_out, _case(2.0, 16)),
    Planted("tree: the first of 32 charged alone", Tree, "_start", _first_charged_alone, _case(10.0, 2, 32, side=32)),
    Planted("tree: each tree's noise from the same seed", Tree, "_start", _from_a_seed, _case(2.0, 4, 2)),
)
