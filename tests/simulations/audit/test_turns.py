"""What all models tell of participants that take turns: exact by hand, and nothing where the noise hides it."""

import numpy as np
import pytest

from astrofed.server.privacy.mechanisms import Tree
from astrofed.shared.privacy.noise import UnsafeSeededRandomness
from astrofed.simulations.audit.canaries import coins
from astrofed.simulations.audit.turns import direction, scores, shown


def test_each_cohort_shows_in_its_turn_and_the_other_way_round_in_the_next_tree() -> None:
    assert shown(5, 2).tolist() == [[1, 0], [0, 1], [-1, 0], [0, -1], [1, 0]]
    assert [direction(number, 3) for number in range(1, 8)] == [1, 1, 1, -1, -1, -1, 1]


def test_the_likelihood_is_that_of_normal_numbers_by_hand() -> None:
    """Rounds have independent noise of variances 4 and 1; of three canaries the second is of the other cohort."""
    idle = np.array([[2.0, -2.0, 2.0, -2.0], [1.0, 1.0, -1.0, -1.0]])
    sums = np.array([[3.0, 5.0, 0.0], [7.0, 2.0, 0.0]])
    expected = [(3 - 0.5) / 4, 2 - 0.5, -0.5 / 4]
    assert scores(sums, idle, 2) == pytest.approx(expected, rel=1e-6)


def test_noise_that_two_models_have_in_common_hides_nothing() -> None:
    random, present = np.random.default_rng(1), coins(200, 2)
    own = np.arange(200) % 2
    noise = random.normal(size=(1, 300)) * 50
    running = np.concatenate([noise, noise])
    running[0, :200] += present & (own == 0)
    running[1, :200] += present
    sums = np.diff(running, axis=0, prepend=0.0)
    found = scores(sums[:, :200], sums[:, 200:], 2)
    assert np.array_equal((found > 0)[own == 1], present[own == 1])
    assert abs(found[own == 0]).max() < 1  # of the first cohort only a noisy sum says anything


def test_a_trees_members_are_told_as_well_as_its_nodes_allow() -> None:
    """Three nodes speak of the first of four cohorts, so what is told of it is three times as sure as by one."""
    deviation, members = 4.0, 20_000
    tree = Tree(UnsafeSeededRandomness(3), 4)
    present = coins(4 * members, 4)
    sums = np.zeros((4, 5 * members))
    for number in range(4):
        total = np.zeros(5 * members)
        total[number : 4 * members : 4] = present[number::4]
        sums[number] = tree({"w": total}, deviation)["w"]
    found = scores(sums[:, : 4 * members], sums[:, 4 * members :], 4)
    for cohort, nodes in enumerate((3, 2, 2, 1)):
        own, there = found[cohort::4], present[cohort::4]
        between = own[there].mean() - own[~there].mean()
        assert between == pytest.approx(nodes / deviation**2, rel=0.1)
        assert own[~there].std() == pytest.approx(between**0.5, rel=0.1)
