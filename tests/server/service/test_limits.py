"""Token buckets: so many at once, then so many a second, each name for itself."""

from astrofed.server.service.limits import Limiter


def test_a_burst_and_then_the_rate() -> None:
    now = [0.0]
    limiter = Limiter(2.0, 5.0, clock=lambda: now[0])
    assert [limiter.allows("a") for _ in range(7)] == [True] * 5 + [False] * 2
    assert limiter.allows("b")
    now[0] += 1.0
    assert [limiter.allows("a") for _ in range(3)] == [True, True, False]
    now[0] += 1000.0
    assert [limiter.allows("a") for _ in range(6)] == [True] * 5 + [False]


def test_ever_new_names_do_not_fill_the_memory() -> None:
    limiter = Limiter(1.0, 1.0, capacity=10)
    for number in range(1000):
        limiter.allows(str(number))
    assert len(limiter._buckets) == 10
