"""How values of hyperparameters are drawn, and changed when another member takes them over."""

import math
from collections.abc import Mapping, Sequence
from random import Random

from astrofed.shared.plan_evolution import Bounds, Evolution

Values = dict[str, int | float]


def drawn(settings: Evolution, count: int, rng: Random) -> list[Values]:
    """Return the values of `count` members, spread over the ranges: each has its own share of every key's range.

    McKay, Beckman & Conover (1979), "A comparison of three methods for selecting values of input variables",
    Technometrics 21(2), section 2 (Latin hypercube sampling).
    """
    members = [Values() for _ in range(count)]
    for key, bounds in settings.keys.items():
        places = list(range(count))
        rng.shuffle(places)
        for member, place in zip(members, places, strict=True):
            member[key] = value_at(bounds, (place + rng.random()) / count)
    return members


def explored(settings: Evolution, values: Mapping[str, int | float], generation: int, rng: Random) -> Values:
    """Return values changed at random after a generation: each is moved a little, or seldom drawn anew.

    Jaderberg et al. (2017), section 3, "explore"; moves are Gaussian on the key's own scale, reflected at its bounds.
    Their size falls over the generations by a fixed rule (Eiben, Hinterding & Michalewicz 1999, "Parameter control in
    evolutionary algorithms", IEEE Trans. Evol. Comput. 3(2), deterministic control).
    """
    changes = settings.generations - 1  # that there are in all, the first after generation 1
    size = settings.perturb * settings.decay ** ((generation - 1) / max(changes - 1, 1))
    changed = Values()
    for key, bounds in settings.keys.items():
        if rng.random() < settings.resample:
            place = rng.random()
        else:
            place = _reflected(place_of(bounds, values[key]) + rng.gauss(0.0, size))
        changed[key] = value_at(bounds, place)
    return changed


def middle(settings: Evolution) -> Values:
    """Return the values in the middle of all ranges."""
    return {key: value_at(bounds, 0.5) for key, bounds in settings.keys.items()}


def corners(settings: Evolution) -> Sequence[Values]:
    """Return values that reach each bound of each key, the others in the middle."""
    return [middle(settings) | {key: end} for key, bounds in settings.keys.items() for end in (bounds.low, bounds.high)]


def value_at(bounds: Bounds, place: float) -> int | float:
    """Return the value at a place from 0 (low) to 1 (high)."""
    if bounds.scale == "log":
        value = bounds.low * (bounds.high / bounds.low) ** place
    else:
        value = bounds.low + (bounds.high - bounds.low) * place
    inside = min(max(value, bounds.low), bounds.high)
    return round(inside) if bounds.whole else float(inside)


def place_of(bounds: Bounds, value: float) -> float:
    """Return where a value lies, from 0 to 1."""
    if bounds.scale == "log":
        return math.log(value / bounds.low) / math.log(bounds.high / bounds.low)
    return (value - bounds.low) / (bounds.high - bounds.low)


def _reflected(place: float) -> float:
    folded = abs(place) % 2.0
    return 2.0 - folded if folded > 1.0 else folded
