"""A clipping norm that follows a quantile of what is clipped, privately (Andrew et al. 2021, arXiv:1905.03871)."""

import math

import torch

from astrofed.shared.privacy.noise import Randomness


class QuantileNorm:
    """A norm, and the noisy count by which it moves: for units' gradients at a site, or sites' updates at the server.

    Each step also counts what was not clipped. The count is a release: it is taken around one half (one contribution
    moves it by ½ whether it is clipped or not) and divided by the expected, not the drawn, number of contributions, and
    it gets noise of its own. The sum's noise is raised so that both together are one Gaussian mechanism of the step's
    noise multiplier z: z⁻² = z_sum⁻² + (2 σ_count)⁻² (theorem 1 there).
    """

    RATE = 0.2  # of the norm's logarithm, as there
    COUNT_NOISE = 1 / 20  # of the expected number of contributions, as there
    FARTHEST = 1e6  # times the first norm, or its inverse: where there are no contributions at all, it would go to 0

    def __init__(self, norm: float, quantile: float) -> None:
        self.norm = norm
        self._quantile, self._first = quantile, norm
        self._count = 0.0  # not clipped less clipped, halved

    def count(self, unclipped: int, contributions: int) -> None:
        """Take note of how many of some contributions were not clipped."""
        self._count += unclipped - contributions / 2

    def noise_multiplier(self, of_step: float, expected: float) -> float:
        """Return the noise on the sum in clipping norms, where a step's noise multiplier is to be `of_step`.

        `expected`: contributions to a step on average.
        """
        return 1 / math.sqrt(1 / of_step**2 - 1 / (2 * self.count_noise(of_step, expected)) ** 2)

    def count_noise(self, of_step: float, expected: float) -> float:
        """Return the standard deviation of the noise on the count.

        It is never less than the step's noise multiplier, so that the sum's noise is raised by 16 % at most.
        """
        return max(self.COUNT_NOISE * expected, of_step)

    def end_step(self, of_step: float, expected: float, random: Randomness) -> None:
        """Move the norm by what the noisy count says."""
        count = torch.tensor(self._count, dtype=torch.float64)
        noisy = float(random.hidden(count, self.count_noise(of_step, expected)))
        share = min(max(0.5 + noisy / expected, 0.0), 1.0)
        moved = self.norm * math.exp(-self.RATE * (share - self._quantile))
        self.norm = min(max(moved, self._first / self.FARTHEST), self._first * self.FARTHEST)
        self._count = 0.0
