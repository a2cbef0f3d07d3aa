"""The tree's noise: which rounds each node covers, and how many nodes one round is part of."""

import numpy as np
import pytest

from astrofed.server.privacy.mechanisms import Independent, Tree
from astrofed.server.privacy.tree import TreeNoise, height
from astrofed.shared.privacy.noise import UnsafeSeededRandomness


def nodes_by_round(rounds: int) -> list[list[int]]:
    """For each round, the nodes (numbered as drawn) that its running sum is made of."""
    drawn = iter(range(10**6))
    tree = TreeNoise(lambda: next(drawn))
    return [tree.advance() for _ in range(rounds)]


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 5, 7, 8, 12, 16, 33])
def test_a_round_is_part_of_as_many_nodes_as_is_accounted(rounds: int) -> None:
    """A node covers the rounds from the end of the nodes kept beside it up to the round in which it came in."""
    covered: dict[int, set[int]] = {}
    for number, nodes in enumerate(nodes_by_round(rounds), start=1):
        assert len(nodes) == number.bit_count()
        new = [node for node in nodes if node not in covered]
        assert len(new) == 1
        beside = set[int]().union(*(covered[node] for node in nodes if node in covered))
        covered[new[0]] = set(range(1, number + 1)) - beside
    members = [sum(number in own for own in covered.values()) for number in range(1, rounds + 1)]
    assert max(members) == height(rounds)


def test_running_sums_have_the_noise_of_their_nodes_alone() -> None:
    """After t rounds the variance is that of as many draws as t has binary ones; independent noise adds up t times."""
    zeros = {"w": np.zeros(40_000)}
    tree, independent = Tree(UnsafeSeededRandomness(1), 8), Independent(UnsafeSeededRandomness(2))
    running, other = np.zeros(40_000), np.zeros(40_000)
    for number in range(1, 9):
        running += tree(zeros, 2.0)["w"]
        other += independent(zeros, 2.0)["w"]
        assert running.std() == pytest.approx(2.0 * number.bit_count() ** 0.5, rel=0.02)
        assert other.std() == pytest.approx(2.0 * number**0.5, rel=0.02)


def test_a_tree_keeps_what_was_summed_and_begins_anew_when_it_is_full() -> None:
    tree = Tree(UnsafeSeededRandomness(3), 2)
    assert tree.begins
    running = tree({"w": np.full(3, 5.0)}, 1e-6)["w"] + 0
    assert not tree.begins
    running += tree({"w": np.full(3, -2.0)}, 1e-6)["w"]
    assert tree.begins and running == pytest.approx(3.0, abs=1e-4)
    assert tree({"w": np.ones(3)}, 1e-6)["w"] == pytest.approx(1.0, abs=1e-4) and not tree.begins


@pytest.mark.parametrize("kind", [Tree, Independent])
def test_what_leaves_is_on_the_noises_grid(kind: type) -> None:
    random = UnsafeSeededRandomness(4)
    release = kind(random, 4) if kind is Tree else kind(random)
    for _ in range(3):
        steps = release({"w": np.array([0.1234567890123, 1 / 3])}, 1.0)["w"] * 4096
        assert np.array_equal(steps, np.round(steps))
