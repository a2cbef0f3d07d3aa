"""Calls that take turns, so that a busy machine slows all of them alike, and their times compared turn by turn."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from astrofed.simulations.bench.memory import peak_beyond

BRIEF = 0.1  # seconds; of calls shorter than this, three make one measurement


@dataclass(frozen=True)
class Call:
    """Something to take the time of: `ready` makes what `run` is given, before the clock starts."""

    run: Callable[[Any], Any]
    ready: Callable[[], Any] = lambda: None


def alternate(
    calls: Mapping[str, Call],
    rounds: int,
    patience: float,
    peaks: dict[str, int | None] | None = None,
    failed: dict[str, str] | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of each call in each round in which it took part: all in the first, and then the patient.

    Args:
        calls: what takes turns, by name.
        rounds: how often, at most.
        patience: seconds after which a call takes part no more.
        peaks: filled, if given, with the bytes that each call in the first round had at its peak.
        failed: filled, if given, with what calls raised: they take part no more, and have no times. Else it is raised.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name, call in calls.items():
            if failed is not None and name not in failed:
                try:
                    _take_part(name, call, number, patience, times[name], peaks)
                except Exception as error:  # noqa: BLE001 - a peer may raise anything, for want of memory above all
                    failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                    times[name].clear()
            elif failed is None:
                _take_part(name, call, number, patience, times[name], peaks)
    return times


def _take_part(
    name: str, call: Call, number: int, patience: float, times: list[float], peaks: dict[str, int | None] | None
) -> None:
    if number == 0 and peaks is not None:
        seconds, peaks[name] = peak_beyond(partial(_once, call, call.ready()))
        times.append(seconds)
    elif number == 0 or sum(times) < patience:
        times.append(_briefly(call))


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return how many times longer the first takes, the median over the rounds that both took part in."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=False))


def _briefly(call: Call) -> float:
    found: list[float] = []
    while not found or (len(found) < 3 and max(found) < BRIEF):
        found.append(_once(call, call.ready()))
    return statistics.median(found)


def _once(call: Call, given: Any) -> float:
    start = time.perf_counter()
    call.run(given)
    return time.perf_counter() - start
