"""The lower bound on epsilon: exact where it can be worked out by hand, and never above a known epsilon too often."""

import math

import numpy as np
import pytest

from astrofed.simulations.audit.bound import CONFIDENCE, bound, least_epsilon, p_value


@pytest.mark.parametrize("guesses", [10, 100, 1000])
def test_guesses_that_are_all_right_give_what_they_give_by_hand(guesses: int) -> None:
    chance = 0.05 ** (1 / guesses)  # with which all are right in one of twenty cases
    expected = math.log(chance / (1 - chance))
    assert least_epsilon(guesses, guesses, guesses, 0.0, 0.95) == pytest.approx(expected, abs=2e-4)


def test_two_guesses_by_hand() -> None:
    fair = math.e / (1 + math.e)
    assert p_value(2, 2, 2, 1.0, 0.0) == pytest.approx(fair**2)
    assert p_value(1, 2, 2, 1.0, 0.0) == pytest.approx(1 - (1 - fair) ** 2)
    below = (2 * fair * (1 - fair), (2 * fair * (1 - fair) + (1 - fair) ** 2) / 2)  # one or none right
    assert p_value(2, 2, 5, 1.0, 0.01) == pytest.approx(fair**2 + 2 * 5 * 0.01 * max(below))


def test_a_coins_guesses_show_nothing() -> None:
    random = np.random.default_rng(1)
    found = bound(random.normal(size=4000), random.random(4000) < 0.5, 1e-6)
    assert found.epsilon == 0 and found.guesses > 0


def test_delta_and_fewer_right_guesses_weaken_it() -> None:
    found = [least_epsilon(90, 100, 1000, delta, 0.95) for delta in (0.0, 1e-6, 1e-4)]
    assert found[0] > found[1] > found[2] >= 0
    assert least_epsilon(80, 100, 1000, 0.0, 0.95) < found[0]
    assert p_value(3, 4, 10, 0.0, 1.0) == 1.0


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_randomised_response_is_measured_close_from_below(epsilon: float) -> None:
    """It answers truly with probability e^epsilon / (1 + e^epsilon), which is all that epsilon allows."""
    random, found, canaries = np.random.default_rng(2), [], 2000
    for _ in range(60):
        present = random.random(canaries) < 0.5
        answers = present ^ (random.random(canaries) < 1 / (1 + math.exp(epsilon)))
        scores = np.where(answers, 1.0, -1.0) + 0.1 * random.random(canaries)
        found.append(bound(scores, present, 0.0).epsilon)
    assert sum(value > epsilon for value in found) <= 60 * 2 * (1 - CONFIDENCE) + 1
    assert np.median(found) > 0.8 * epsilon - 0.2
