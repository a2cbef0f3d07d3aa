"""The search itself: generations of candidates, each trained a little, the better part of them further.

Successive halving (Jamieson & Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization",
AISTATS, algorithm 1) inside each generation of the proposer. Who trains a candidate is given from outside: a
federation, or in the benchmark a table.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from astrofed.server.search.proposals import Chance, Genetic, Proposer
from astrofed.server.search.space import Choices, Space
from astrofed.server.search.trials import Book, Objective, Trial, last_of_each, pareto_front
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Search


class NothingFound(UserMistake):
    """A search ended without a candidate that was trained to the last rung."""


class Trainer(Protocol):
    """Trains candidates and says what they cost."""

    def parameters(self, choices: Choices) -> int:
        """Return how many parameters a candidate has."""

    def latency(self, choices: Choices) -> float | None:
        """Return the seconds of one forward pass of a candidate; None where nobody asked."""

    def train(self, number: int, choices: Choices, rounds: int) -> float:
        """Train a candidate until it has had as many rounds in all; return its loss on held-out data."""


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    trials: tuple[Trial, ...]  # each candidate at the highest rung that it reached
    front: tuple[Trial, ...]  # of those that reached the last rung, the lowest loss first
    winner: Trial  # of the front, that with the lowest loss
    rounds: int  # of training, over all candidates


def search(
    space: Space,
    settings: Search,
    rungs: Sequence[int],
    seed: int,
    trainer: Trainer,
    book: Book,
    told: Callable[[Trial], None],
) -> Found:
    """Search until the candidates or the rounds are used up.

    Args:
        space: what candidates are made of.
        settings: the plan's section.
        rungs: rounds after which candidates are compared, growing; the last is a candidate's full training.
        seed: of the proposals.
        trainer: trains candidates.
        book: what is known from before; it grows.
        told: called with each new line of the book.

    Raises:
        NothingFound: no candidate could be trained to the last rung.
    """
    proposer = _proposer(space, settings, seed)
    numbers: dict[Choices, int] = {}
    left = settings.candidates
    while left > 0 and len(numbers) < space.size:
        proposed = proposer.propose(min(settings.population, left))
        if not proposed:
            break
        left -= len(proposed)
        spent = _cost(trial for trial in book.trials if trial.number <= len(numbers))  # a resumed book knows of more
        unknown = [choices for choices in dict.fromkeys(proposed) if choices not in numbers]
        fresh = unknown[: _affordable(len(unknown), rungs, settings, spent)]
        numbers |= {choices: len(numbers) + 1 + place for place, choices in enumerate(fresh)}
        largest = settings.max_parameters
        within = {c: numbers[c] for c in fresh if largest is None or trainer.parameters(c) <= largest}
        _climb(space, settings, rungs, within, trainer, book, told)
        if len(fresh) < len(unknown):
            break  # the rounds are used up
        known = {tuple(trial.choices.values()): trial for trial in last_of_each(book.trials)}
        proposer.learn({c: _values(known.get(c), settings.objectives) for c in proposed})
    best = last_of_each(book.trials)
    front = pareto_front([trial for trial in best if trial.rung == len(rungs) - 1], settings.objectives)
    if not front:
        raise NothingFound(
            "no candidate was trained to the last rung; allow more search.candidates, search.rounds or "
            "search.max_parameters"
        )
    return Found(tuple(best), tuple(front), front[0], _cost(book.trials))


def _climb(
    space: Space,
    settings: Search,
    rungs: Sequence[int],
    numbers: dict[Choices, int],
    trainer: Trainer,
    book: Book,
    told: Callable[[Trial], None],
) -> None:
    """Train one generation rung by rung; of each rung the better part goes on, ranked by fronts, then by loss."""
    for rung, rounds in enumerate(rungs):
        trials = []
        for choices, number in numbers.items():
            trial = book.find(number, rung)
            if trial is None:
                trial = Trial(
                    number=number,
                    choices=space.named(choices),
                    rung=rung,
                    rounds=rounds,
                    loss=trainer.train(number, choices, rounds),
                    parameters=trainer.parameters(choices),
                    latency=trainer.latency(choices),
                )
                book.add(trial)
                told(trial)
            trials.append(trial)
        kept = {trial.number for trial in _ranked(trials, settings.objectives)[: _kept(len(trials), settings.keep)]}
        numbers = {choices: number for choices, number in numbers.items() if number in kept}


def _ranked(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    left, ranked = list(trials), list[Trial]()
    while left:
        front = pareto_front(left, objectives)
        ranked += front
        left = [trial for trial in left if trial not in front]
    return ranked


def _kept(count: int, share: float) -> int:
    return max(1, math.ceil(count * share)) if count else 0


def _affordable(count: int, rungs: Sequence[int], settings: Search, spent: int) -> int:
    """How many of so many new candidates can be trained with the rounds that are left."""
    if settings.rounds is None:
        return count
    left = settings.rounds - spent
    return max(number for number in range(count + 1) if number == 0 or _price(number, rungs, settings) <= left)


def _price(count: int, rungs: Sequence[int], settings: Search) -> int:
    """How many rounds a generation of new candidates takes."""
    price, before = 0, 0
    for rounds in rungs:
        price += count * (rounds - before)
        count, before = _kept(count, settings.keep), rounds
    return price


def _cost(trials: Iterable[Trial]) -> int:
    return sum(trial.rounds for trial in last_of_each(trials))


def _values(trial: Trial | None, objectives: Sequence[Objective]) -> list[float] | None:
    return None if trial is None else [trial.value(objective) for objective in objectives]


def _proposer(space: Space, settings: Search, seed: int) -> Proposer:
    if settings.algorithm == "random":
        return Chance(space, seed)
    return Genetic(space, len(settings.objectives), settings.population, seed)
