"""How often somebody may ask: token buckets, one for each address or node, forgotten when they are full again."""

import time
from collections import OrderedDict
from collections.abc import Callable


class Limiter:
    """Grants `rate` requests a second on average to each name, and `burst` at once.

    No more than `capacity` names are remembered: whoever comes from ever new addresses pushes out the oldest ones.
    """

    def __init__(
        self, rate: float, burst: float, capacity: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._capacity, self._clock = rate, burst, capacity, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens left, and when that was

    def allows(self, name: str, cost: float = 1.0) -> bool:
        """Take `cost` tokens from a name's bucket, if there are as many; return whether there were."""
        tokens = self._left(name)
        granted = tokens >= cost
        self._buckets[name] = (tokens - cost if granted else tokens, self._clock())
        self._buckets.move_to_end(name)
        if len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        return granted

    def _left(self, name: str) -> float:
        tokens, then = self._buckets.get(name, (self._burst, self._clock()))
        return min(self._burst, tokens + (self._clock() - then) * self._rate)
