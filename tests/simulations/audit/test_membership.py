"""Members are told from others by their loss where nothing hides them, and less so where noise does."""

import pytest

from astrofed.simulations.audit.membership import attack


@pytest.mark.usefixtures("_seeded")
def test_privacy_takes_from_the_attack_what_it_finds_without() -> None:
    bare, private = attack(None), attack(1.0, rounds=4)
    assert bare.epsilon is None and bare.auc - 0.5 > 5 * bare.error and bare.measured.epsilon > 0
    assert private.epsilon is not None and private.epsilon <= 1 and private.sound
    assert private.auc < bare.auc - 2 * bare.error
