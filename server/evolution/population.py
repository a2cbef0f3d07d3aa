"""Population-based training on islands: train, let the worst take over from the best, explore, migrate.

Jaderberg et al. (2017), "Population based training of neural networks", arXiv:1711.09846, algorithm 1 with truncation
selection (section 4.1.1), its members in step; islands and the ring as in Whitley, Rana & Heckendorn (1999), "The
island model genetic algorithm", J. Comput. Inf. Technol. 7. Who trains a member is given from outside: a federation, or
in a benchmark a function. All draws depend on the seed and on places, so a book of lives is enough to go on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, Protocol

from astrofed.server.evolution.changes import Values, drawn, explored
from astrofed.server.evolution.lives import Book, Life, Place, best
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan_evolution import Evolution
from astrofed.shared.seeds import derive_seed


class NobodyLives(UserMistake):
    """The training of every member of an island failed."""


class Trainer(Protocol):
    """Trains members."""

    def train(self, place: Place, values: Mapping[str, int | float], parent: Place | None) -> float | None:
        """Train a member from its parent's weights; return its loss on held-out data, None where training failed."""


@dataclass(frozen=True)
class Child:
    """A member before its training."""

    values: Values
    origin: Literal["born", "kept", "copied", "migrated"]
    parent: Place | None


def evolve(
    settings: Evolution, islands: int, seed: int, trainer: Trainer, book: Book, told: Callable[[Life], None]
) -> tuple[Life, ...]:
    """Evolve to the last generation and return the best member of each island there.

    Args:
        settings: the plan's section.
        islands: how many there are.
        seed: of all draws.
        trainer: trains members.
        book: what is known from before; it grows.
        told: called with each new line of the book.

    Raises:
        NobodyLives: no member of an island could be trained.
    """
    children = [_born(settings, seed, island) for island in range(1, islands + 1)]
    for generation in range(1, settings.generations + 1):
        lives = [
            [
                _lived(child, Place(island=i, generation=generation, member=m), trainer, book, told)
                for m, child in enumerate(members, 1)
            ]
            for i, members in enumerate(children, 1)
        ]
        for members in lives:
            if best(members).loss is None:
                raise NobodyLives(
                    f"island {members[0].place.island}: the training of all its members failed in generation "
                    f"{generation}; lower the bounds of training.learning_rate, or set training.gradient_clip"
                )
        if generation < settings.generations:
            children = _next(settings, seed, lives, generation)
    return tuple(best(members) for members in lives)


def _born(settings: Evolution, seed: int, island: int) -> list[Child]:
    rng = Random(derive_seed(seed, "evolution", "born", island))
    return [Child(values, "born", None) for values in drawn(settings, settings.population, rng)]


def _lived(child: Child, place: Place, trainer: Trainer, book: Book, told: Callable[[Life], None]) -> Life:
    known = book.find(place)
    if known is not None:
        return known
    loss = trainer.train(place, child.values, child.parent)
    life = Life(place=place, values=child.values, origin=child.origin, parent=child.parent, loss=loss)
    book.add(life)
    told(life)
    return life


def _next(settings: Evolution, seed: int, lives: Sequence[Sequence[Life]], generation: int) -> list[list[Child]]:
    """Return the next generation of all islands."""
    migrates = len(lives) > 1 and generation % settings.migrate_every == 0
    return [
        _selected(
            settings,
            Random(derive_seed(seed, "evolution", "next", island, generation)),
            members,
            generation,
            best(lives[island - 2]) if migrates else None,  # of the island before; before the first is the last
        )
        for island, members in enumerate(lives, 1)
    ]


def _selected(
    settings: Evolution, rng: Random, members: Sequence[Life], generation: int, guest: Life | None
) -> list[Child]:
    """Return an island's next generation: the worst give way to a guest and to copies of the best.

    A guest keeps its values, and is measured on its new island before it is compared with anybody there.
    """
    ordered = sorted(members, key=lambda life: life.rank)
    count = min(max(1, int(settings.exploit * len(members))), len(members) - 1)
    failed = sum(life.loss is None for life in members)
    leaving = ordered[-max(count, failed) :]
    parents = [life for life in ordered[: min(count, len(members) - count)] if life.loss is not None]
    children = []
    for life in members:
        if life not in leaving:
            children.append(Child(dict(life.values), "kept", life.place))
        elif guest is not None and life is ordered[-1]:
            children.append(Child(dict(guest.values), "migrated", guest.place))
        else:
            parent = rng.choice(parents)
            children.append(Child(explored(settings, parent.values, generation, rng), "copied", parent.place))
    return children
