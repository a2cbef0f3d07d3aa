"""What all models of a run say of participants that take turns, as they do under a tree's noise.

Whose turn it is in a round is public. So whoever sees each released model knows in which changes a participant must
show, and what hides it is the noise of these changes taken together, as a tree's noise hangs together over its rounds.
How it does is learnt from weights that nobody moves: the observer needs to know neither the mechanism nor its bug, and
a combination of models that the noise drops out of is found like any other.

A participant that is there sends its update in the first tree, the opposite in the second, and so on by turns: noise
that two trees have in common can't hide the difference.
"""

import numpy as np
from numpy.typing import NDArray

IDLE = 16  # weights that nobody moves, for each round
_RIDGE = 1e-9  # of the mean variance: below it float32 models and 64-bit sums differ by rounding alone

Floats = NDArray[np.float64]


def direction(server_round: int, cohorts: int) -> int:
    """Return the sign of what is sent in a round (from 1)."""
    return -1 if (server_round - 1) // cohorts % 2 else 1


def shown(rounds: int, cohorts: int) -> Floats:
    """Return [round, cohort] what a member of a cohort adds to the sum of a round, in clipping norms."""
    pattern: Floats = np.zeros((rounds, cohorts))
    for server_round in range(1, rounds + 1):
        pattern[server_round - 1, (server_round - 1) % cohorts] = direction(server_round, cohorts)
    return pattern


def scores(sums: Floats, idle: Floats, cohorts: int) -> Floats:
    """Return [canary] the logarithm of how much likelier the sums are with the canary than without, for Gaussian noise.

    Args:
        sums: [round, canary] what each round's sum was said to be on the canary's own weight, in clipping norms.
        idle: [round, weight] the same on weights that nobody moves.
        cohorts: canary number i is of cohort i modulo so many.
    """
    together = idle @ idle.T / idle.shape[1]
    together += _RIDGE * np.trace(together) / len(together) * np.eye(len(together))
    pattern = shown(len(sums), cohorts)
    weights = np.linalg.solve(together, pattern)  # [round, cohort]
    own = np.arange(sums.shape[1]) % cohorts
    found: Floats = (weights[:, own] * sums).sum(axis=0) - (weights * pattern).sum(axis=0)[own] / 2
    return found
