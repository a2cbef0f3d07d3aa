"""Evolution beside a fixed grid on the datacube's learning rate and weight decay, at an equal number of rounds.

Members learn one world; learning rate and weight decay evolve from generation to generation, so that a winner's line is
a schedule. The grid has as many cells as there are members, its rates and decays the middles of equal shares of the
same ranges, and each cell trains for as many rounds as a member has generations: once at a constant rate, once along
the cosine that plans usually have. All choose by the loss on the world's held-out months, which is compared; a world
that nobody trained on or chose by tells what the choice is worth elsewhere. How far members move was chosen by the
first three seeds.
"""

import itertools
import tempfile
from pathlib import Path
from typing import Any

from astrofed.server.evolution.changes import value_at
from astrofed.shared.plan import Plan, load_plan
from astrofed.shared.plan_evolution import Bounds
from astrofed.simulations.bench.modes_result import ModeRow, interval
from astrofed.simulations.bench.result import Target
from astrofed.simulations.result import RunResult
from astrofed.simulations.simulate import simulate

SIDE, GENERATIONS = 3, 6  # cells a side of the grid; rounds of a cell, and generations of one round
KEYS = {
    "training.learning_rate": Bounds(low=3e-4, high=3e-2),
    "training.weight_decay": Bounds(low=1e-3, high=1.0),
}
COSINE = 0.1  # share of the rate by the last round
Score = tuple[float, float]
"""A winner's loss on the held-out months that it was chosen by, and on the world that nobody trained on."""


def schedule_rows(seeds: int) -> list[ModeRow]:
    """Return both grids' and evolution's losses, and how much lower evolution's are, over paired seeds."""
    found: dict[str, list[Score]] = {"grid, constant rate": [], "grid, cosine": [], "evolution": []}
    for seed in range(1, seeds + 1):
        with tempfile.TemporaryDirectory() as folder:
            found["grid, constant rate"].append(best_of_grid(seed, 1.0, Path(folder) / "constant"))
            found["grid, cosine"].append(best_of_grid(seed, COSINE, Path(folder) / "cosine"))
            found["evolution"].append(evolved(seed, Path(folder) / "evolution"))
    rounds = SIDE**2 * GENERATIONS
    work = f"datacube's learning rate and weight decay, {rounds} rounds of one world"
    rows = [
        ModeRow("evolution", work, f"loss, {name}", *interval([score[0] for score in scores]), seeds)
        for name, scores in found.items()
    ]
    for name in list(found)[:2]:
        pairs = list(zip(found[name], found["evolution"], strict=True))
        saved = interval([1 - own[0] / grid[0] for grid, own in pairs])
        elsewhere = interval([1 - own[1] / grid[1] for grid, own in pairs])
        beats = Target(f"evolution beats the {name} at as many rounds (95 % interval)", saved[0], saved[1] > 0)
        rows += [
            ModeRow("evolution", work, f"error saved beside the {name}", *saved, seeds, (beats,)),
            ModeRow("evolution", work, f"the same on an unseen world, beside the {name}", *elsewhere, seeds),
        ]
    return rows


def best_of_grid(seed: int, decay: float, folder: Path) -> Score:
    """Train every cell and return the one with the lowest loss on the held-out months."""
    axes = [[value_at(bounds, (cell + 0.5) / SIDE) for cell in range(SIDE)] for bounds in KEYS.values()]
    scores = []
    for number, (rate, weight_decay) in enumerate(itertools.product(*axes)):
        training = {"learning_rate": rate, "weight_decay": weight_decay, "decay": decay}
        changes = {"mode": "single", "rounds": GENERATIONS, "evaluate_every": GENERATIONS}
        scores.append(_score(simulate(_plan(seed, training, changes), out=folder / str(number)), GENERATIONS))
    return min(scores)


def evolved(seed: int, folder: Path) -> Score:
    """Evolve as many members for as many generations of one round; return the winner's losses before more rounds."""
    keys = {key: bounds.model_dump() for key, bounds in KEYS.items()}
    evolution = {
        "keys": keys,
        "population": SIDE**2,
        "generations": GENERATIONS,
        "exploit": 0.5,
        "perturb": 0.25,
        "resample": 0.05,
    }
    result = simulate(_plan(seed, {}, {"mode": "evolution", "evolution": evolution}), out=folder)
    return _score(result, 0)


def _score(result: RunResult, number: int) -> Score:
    entry = result.rounds[number]
    assert entry.loss is not None
    return entry.loss, entry.unseen["loss"]


def _plan(seed: int, training: dict[str, Any], changes: dict[str, Any]) -> Plan:
    return load_plan(
        {
            "name": "schedule",
            "seed": seed,
            "task": {
                "name": "datacube",
                "variables": ["ta", "ua", "va", "zg", "ps"],
                "months_in": 2,
                "held_out_months": 6,
            },
            "model": {"name": "datacube-net", "base_features": 8, "coarse_features": 8, "depth": 1},
            "training": {"batch_size": 1, "gradient_clip": 1.0, **training},
            "engine": {"threads": 1},
            "participants": [
                {"name": "earthlike", "data": "bundled:worlds/earthlike"},
                {"name": "eccentric", "data": "bundled:worlds/w6_eccentric", "role": "evaluate"},
            ],
            **changes,
        }
    )
