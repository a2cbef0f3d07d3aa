"""Noise and sampling that are the same each time, another one in each round."""

from itertools import count

import pytest

from astrofed.client.privacy import dpsgd
from astrofed.server.strategies import central
from astrofed.shared.privacy.noise import UnsafeSeededRandomness


@pytest.fixture
def _seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = count(1)
    for module in (dpsgd, central):
        monkeypatch.setattr(module, "Randomness", lambda: UnsafeSeededRandomness(next(numbers)))
