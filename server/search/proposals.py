"""Who proposes candidates: NSGA-II (Deb et al. 2002, by optuna's sampler), or chance.

Both are replayed from the start when a search is resumed: with the same seed and the same answers they propose the same
candidates, so nothing of them has to be kept.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Protocol

from astrofed.server.search.space import Choices, Space
from astrofed.shared.seeds import derive_seed


class Proposer(Protocol):
    """Proposes candidates a generation at a time and learns what became of them."""

    def propose(self, count: int) -> list[Choices]:
        """Return the next candidates; some may have been proposed before."""

    def learn(self, values: Mapping[Choices, Sequence[float] | None]) -> None:
        """Take the objectives of the candidates proposed last; None for one that is out of bounds."""


class Genetic:
    """NSGA-II: non-dominated sorting, crowding distance, tournament, crossover and mutation over the places of values.

    Deb, Pratap, Agarwal & Meyarivan (2002), "A fast and elitist multiobjective genetic algorithm: NSGA-II", IEEE Trans.
    Evol. Comput. 6, as optuna's `NSGAIISampler` does it; candidates out of bounds are handled by its constraints
    (section VI). The first generation is spread over the space: each value of a key stands in as many candidates as
    any other, to within one (McKay, Beckman & Conover 1979, Technometrics 21(2), section 2, Latin hypercube sampling).
    """

    def __init__(self, space: Space, objectives: int, population: int, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.NSGAIISampler(
            population_size=population,
            seed=derive_seed(seed, "search") % 2**32,
        )
        self._space = space
        self._study = optuna.create_study(directions=["minimize"] * objectives, sampler=sampler)
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            key: optuna.distributions.CategoricalDistribution(range(len(values)))
            for key, values in space.values.items()
        }
        for places in _spread(space, population, Random(derive_seed(seed, "design"))):
            self._study.enqueue_trial(dict(zip(space.values, places, strict=True)))
        self._objectives = objectives
        self._asked: list[tuple[optuna.Trial, Choices]] = []

    def propose(self, count: int) -> list[Choices]:
        """Return as many candidates, from the parents that the generation before left."""
        for _ in range(count):
            trial = self._study.ask(self._distributions)
            places = tuple(int(trial.params[key]) for key in self._space.values)
            self._asked.append((trial, self._space.at(places)))
        return [choices for _, choices in self._asked]

    def learn(self, values: Mapping[Choices, Sequence[float] | None]) -> None:
        """Tell the objectives; a candidate out of bounds ranks behind every other."""
        for trial, choices in self._asked:
            found = values[choices]
            trial.set_constraint("bounds", 1.0 if found is None else 0.0)
            self._study.tell(trial, [float("inf")] * self._objectives if found is None else list(found))
        self._asked = []


def _spread(space: Space, count: int, rng: Random) -> list[tuple[int, ...]]:
    """Return the places of `count` candidates' values, those of each key as even as can be."""
    columns = []
    for values in space.values.values():
        order = rng.sample(range(len(values)), len(values))  # which values have one more, if some must
        column = [order[place % len(values)] for place in range(count)]
        rng.shuffle(column)
        columns.append(column)
    return list(zip(*columns, strict=True))


class Chance:
    """Random search: each candidate as likely as any other, none twice until all were had."""

    def __init__(self, space: Space, seed: int) -> None:
        import numpy as np

        self._space = space
        self._rng = np.random.default_rng(derive_seed(seed, "search"))
        self._had: set[Choices] = set()

    def propose(self, count: int) -> list[Choices]:
        """Return as many candidates, fewer where the space has no more."""
        found: list[Choices] = []
        while len(found) < count and len(self._had) < self._space.size:
            places = tuple(int(self._rng.integers(len(values))) for values in self._space.values.values())
            choices = self._space.at(places)
            if choices not in self._had:
                self._had.add(choices)
                found.append(choices)
        return found

    def learn(self, values: Mapping[Choices, Sequence[float] | None]) -> None:
        """Learn nothing."""
