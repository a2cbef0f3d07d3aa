"""Noise that sites share, so that the mean of n sites carries the noise that one holder of all rows would need.

Each site adds noise of its own with 1/√n of the standard deviation, and with every other site noise that the two draw
alike and of which one adds what the other takes away. Those pairs' noises are 16 times as strong: they hide each
site's own sum from who sees all messages, and are gone from the sum over all sites. This is the Gaussian mechanism on
all messages together, so what it costs is exact (`own_share`): Imtiaz, Mohammadi & Sarwate 2019, arXiv:1904.10059,
section III (CAPE); Sabater, Bellet & Ramon 2022, arXiv:2006.07218, theorem 1 (GOPA, the complete graph).

It holds against whoever sees all messages and all models, but neither a site's keys nor the noise that a site added
itself. Sites that give theirs away, the reader itself if it is one of them, are counted by the plan (`colluding`).
Each pair's noise may be used for one message only: the site's ledger sees to that by the turn, a number of the
coordinator's, under which it was drawn.
"""

import hashlib
import hmac
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from astrofed.client.privacy.noise_keys import Peers
from astrofed.shared.plan import Plan
from astrofed.shared.privacy.noise import KeyedRandomness, Randomness, grid_step

STRENGTH = 16.0  # of the noise of each pair, in standard deviations of a site's own
_BLOCK = 16384  # numbers at once


@dataclass(frozen=True)
class PairNoise:
    """The noise that a site and one of its peers draw alike for one message."""

    stream: KeyedRandomness
    sign: float  # 1 here, -1 there, or the other way round


@dataclass(frozen=True)
class SharedNoise:
    """How one message of a site is hidden."""

    own_share: float  # of the standard deviation that is accounted for
    pairs: Sequence[PairNoise]

    def hide(self, values: Tensor, deviation: float, random: Randomness) -> None:
        """Add the site's own noise and the pairs' to `values` [number] in place, on the grid of `Randomness.hide`.

        `deviation`: of the noise that is accounted for.
        """
        own = self.own_share * deviation
        step = grid_step(own)
        for part in torch.split(values, _BLOCK):
            numbers = part.numpy()
            noise = own * random.normal(len(part))
            for pair in self.pairs:
                noise += pair.sign * STRENGTH * own * pair.stream.normal(len(part))
            noise += numbers
            numbers[:] = np.rint(noise / step) * step


def own_share(honest: int) -> float:
    """Return the share of its own noise for a site among so many that keep their secrets, itself included.

    With own noise of variance 1 and each pair's of variance m, the messages of h honest sites have the covariance
    I + m (h I - 11ᵀ) once all else is taken away that others may know. A unit moves one site's message alone, and
    that entry of the inverse is 1/h + (1 - 1/h) / (1 + h m): the square of what its noise counts for less than 1/√h.
    """
    return math.sqrt(1 / honest + (1 - 1 / honest) / (1 + honest * STRENGTH**2))


def shared_noise(plan: Plan, name: str, peers: Peers, turn: str) -> SharedNoise:
    """Return how a site hides the message that it is asked for under a turn.

    Raises:
        NotPeers: another training participant's key is not known here.
        KeyUnusable: the site's own can't be used.
    """
    assert plan.privacy is not None and plan.privacy.shared_noise is not None
    pairs = []
    for peer in (each.name for each in plan.trainers if each.name != name):
        key, adds = peers.pair_key(peer)
        stream = KeyedRandomness(hmac.digest(key, turn.encode(), hashlib.sha256))
        pairs.append(PairNoise(stream, 1.0 if adds else -1.0))
    return SharedNoise(own_share(len(plan.trainers) - plan.privacy.shared_noise.colluding), pairs)
