"""What tests of simulations share: an observer that asks to stop, as a user does with Ctrl-C."""

from collections.abc import Callable

import pytest

from astrofed.server.app import Silent


class _StopAfter(Silent):
    """Asks to stop when a number of candidates' or members' lines were heard."""

    def __init__(self, lines: int) -> None:
        self.left = lines

    def said(self, line: str) -> None:
        self.left -= 1

    def should_stop(self) -> bool:
        return self.left <= 0


@pytest.fixture
def stop_after() -> Callable[[int], Silent]:
    """Make an observer that asks to stop after so many lines."""
    return _StopAfter
