"""What private training spends: steps of a noisy mechanism, and what a round is about to spend on a dataset.

Light on purpose: the ledger has to be readable without torch and the accountants.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Steps of one kind: a Poisson sample of units, clipped gradients, Gaussian noise on their sum."""

    noise_multiplier: float  # standard deviation of the noise, in clipping norms
    sample_rate: float  # probability with which each unit is in a step's batch
    steps: int

    def __post_init__(self) -> None:
        if not (self.noise_multiplier > 0 and math.isfinite(self.noise_multiplier)):
            raise ValueError(f"noise_multiplier is {self.noise_multiplier}; it must be positive")
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"sample_rate is {self.sample_rate}; it must be in (0, 1]")
        if self.steps < 0:
            raise ValueError(f"steps is {self.steps}; it can't be negative")


@dataclass(frozen=True)
class Expense:
    """What a round of DP-SGD is about to spend, and on what."""

    run: str
    round: int
    mode: str
    dataset: str  # fingerprint
    unit: str  # what one privacy unit is
    units: int  # privacy units in the training data
    clipping_norm: float
    event: Event
    turn: str = ""  # under which noise is drawn that sites share; each is used once
