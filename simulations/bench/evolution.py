"""Evolution beside a fixed grid at an equal number of evaluations, on Rastrigin's function.

The function is 10 n + Σ (z² − 10 cos 2πz) (Rastrigin 1974; as in Hansen et al. 2009, BBOB's f3 without its
transformations), its minimum 0 moved to a place that each seed draws, since a grid may hold the origin by design. A
member's generation is one evaluation, also where its values are those of the generation before: nothing is kept back.
Sizes of the populations and of changes were chosen on other seeds.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from random import Random

from astrofed.server.evolution.lives import Book, Place
from astrofed.server.evolution.population import evolve
from astrofed.shared.plan_evolution import Evolution
from astrofed.shared.seeds import derive_seed
from astrofed.simulations.bench.modes_result import ModeRow, interval
from astrofed.simulations.bench.result import Target

BOUND = 5.12
CASES = ((2, 8, 8, 8), (4, 4, 16, 16))  # dimensions, grid's points a side, members, generations


class Rastrigin:
    """The function about a place, as something that members are trained on."""

    def __init__(self, minimum: Sequence[float]) -> None:
        self._minimum, self.lowest, self.count = minimum, math.inf, 0

    def __call__(self, point: Sequence[float]) -> float:
        """Return the value at a point, and remember the lowest."""
        moved = [x - m for x, m in zip(point, self._minimum, strict=True)]
        value = 10 * len(moved) + sum(z * z - 10 * math.cos(2 * math.pi * z) for z in moved)
        self.lowest, self.count = min(self.lowest, value), self.count + 1
        return value

    def train(self, place: Place, values: Mapping[str, int | float], parent: Place | None) -> float:
        """Evaluate a member's values."""
        return self(list(values.values()))


def rastrigin_rows(seeds: int) -> list[ModeRow]:
    """Return the lowest value that each found, and the difference over paired seeds, for 2 and 4 dimensions."""
    rows = []
    for dimensions, side, members, generations in CASES:
        grid, evolved = [], []
        for seed in range(seeds):
            rng = Random(derive_seed(seed, "rastrigin", dimensions))
            minimum = [rng.uniform(-4, 4) for _ in range(dimensions)]
            grid.append(on_grid(Rastrigin(minimum), dimensions, side).lowest)
            evolved.append(by_evolution(Rastrigin(minimum), dimensions, members, generations, seed).lowest)
        work = f"Rastrigin in {dimensions} dimensions, {members * generations} evaluations"
        difference = interval([g - e for g, e in zip(grid, evolved, strict=True)])
        beats = Target("evolution beats a grid of as many points (95 % interval)", difference[0], difference[1] > 0)
        rows += [
            ModeRow("evolution", work, "lowest value, grid", *interval(grid), seeds),
            ModeRow("evolution", work, "lowest value, evolution", *interval(evolved), seeds),
            ModeRow("evolution", work, "grid less evolution, paired", *difference, seeds, (beats,)),
        ]
    return rows


def on_grid(function: Rastrigin, dimensions: int, side: int) -> Rastrigin:
    """Evaluate the middles of a grid's cells."""
    axis = [-BOUND + 2 * BOUND * (index + 0.5) / side for index in range(side)]
    for point in itertools.product(axis, repeat=dimensions):
        function(point)
    return function


def by_evolution(function: Rastrigin, dimensions: int, members: int, generations: int, seed: int) -> Rastrigin:
    """Evolve on one island."""
    key = {"low": -BOUND, "high": BOUND, "scale": "linear"}
    settings = Evolution.model_validate(
        {
            "keys": {f"training.x{index}": key for index in range(dimensions)},
            "population": members,
            "generations": generations,
            "exploit": 0.75,
            "perturb": 0.05,
            "decay": 0.1,
        }
    )
    evolve(settings, 1, seed, function, Book(None), lambda life: None)
    return function
