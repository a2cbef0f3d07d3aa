"""Architecture search against chance, on a table: every cell of a space of 108 is trained once and its losses are kept.

    python -m astrofed.simulations.bench.architectures table.jsonl

trains what the table lacks (about ten minutes of one core) and appends a line for each cell. The benchmark then runs
whole searches on the table in milliseconds, so that many seeds can be compared at equal numbers of training rounds. The
population and the share that goes on were chosen on this table, by other seeds, out of fifteen pairs.
"""

import json
import sys
import tempfile
from pathlib import Path

from astrofed.server.search.halving import search
from astrofed.server.search.space import Choices, Space, candidate_plan
from astrofed.server.search.trials import Book
from astrofed.shared.files import append_line
from astrofed.shared.plan import Plan, Search, load_plan
from astrofed.simulations.bench.modes_result import ModeRow, interval
from astrofed.simulations.bench.result import Target
from astrofed.simulations.simulate import simulate

TABLE = Path(__file__).parents[1] / "data" / "architectures.jsonl"
RUNGS = (1, 2, 4)
BUDGETS = (32, 64, 96)  # rounds of training over all candidates
SEEDS = 150
SPACE = Space(
    {
        "model.base_features": (8, 16, 32),
        "model.coarse_features": (8, 24, 48),
        "model.depth": (1, 2),
        "training.learning_rate": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
    }
)


def table_plan() -> Plan:
    """Return the plan whose candidates are the table's cells: one world, four rounds."""
    return load_plan(
        {
            "name": "cell",
            "mode": "nas",
            "seed": 1,
            "rounds": RUNGS[-1],
            "task": {
                "name": "datacube",
                "variables": ["ta", "ua", "va", "zg", "ps"],
                "months_in": 2,
                "months_out": 1,
                "held_out_months": 6,
            },
            "model": "datacube-net",
            "training": {"batch_size": 1, "weight_decay": 0.3, "gradient_clip": 1.0, "decay": 0.1},
            "engine": {"threads": 1},
            "participants": [{"name": "earthlike", "data": "bundled:worlds/earthlike"}],
            "search": {"space": {key: list(values) for key, values in SPACE.values.items()}},
        }
    )


def compute(path: Path) -> None:
    """Train every cell that the table lacks and append its losses after each rung."""
    known = read_table(path) if path.exists() else {}
    plan = table_plan()
    for choices in SPACE.candidates():
        if choices in known:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rounds = simulate(candidate_plan(plan, choices, "cell"), out=Path(folder) / "run").rounds
        losses = [rounds[number].loss for number in RUNGS]
        line = json.dumps({"choices": SPACE.named(choices), "losses": losses})
        append_line(path, line.encode(), flush=True)


def read_table(path: Path = TABLE) -> dict[Choices, dict[int, float]]:
    """Return the losses after each rung by cell."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {
        tuple(row["choices"][key] for key in SPACE.values): dict(zip(RUNGS, row["losses"], strict=True)) for row in rows
    }


class TabulatedTrainer:
    """Looks losses up instead of training."""

    def __init__(self, table: dict[Choices, dict[int, float]]) -> None:
        self._table = table

    def parameters(self, choices: Choices) -> int:
        """Return 0: the comparison is of losses alone."""
        return 0

    def latency(self, choices: Choices) -> float | None:
        """Return nothing: not an objective."""
        return None

    def train(self, number: int, choices: Choices, rounds: int) -> float:
        """Return the loss that the table has for so many rounds."""
        return self._table[choices][rounds]


def search_rows(seeds: int = SEEDS) -> list[ModeRow]:
    """Return both searches' winners at each number of rounds; random search trains every candidate to the end."""
    table, rows = read_table(), []
    work = f"{SPACE.size} tabulated cells of the datacube task"
    for rounds in BUDGETS:
        genetic = [_winner("nsga2", rounds, seed, table) for seed in range(seeds)]
        chance = [_winner("random", rounds, seed, table) for seed in range(seeds)]
        for name, losses in (("NSGA-II with halving", genetic), ("random search", chance)):
            mean, low, high = interval(losses)
            rows.append(ModeRow("nas", work, f"winner's loss, {name}, {rounds} rounds", mean, low, high, seeds))
        gain, low, high = interval([other - own for own, other in zip(genetic, chance, strict=True)])
        target = Target("beats random search with the same rounds, 95 % interval", gain, low > 0)
        rows.append(
            ModeRow("nas", work, f"random less NSGA-II, {rounds} rounds", gain, low, high, seeds, targets=(target,))
        )
    best = min(losses[RUNGS[-1]] for losses in table.values())
    rows.append(ModeRow("nas", work, "the best cell's loss", best, note="what no search can beat"))
    return rows


def _winner(algorithm: str, rounds: int, seed: int, table: dict[Choices, dict[int, float]]) -> float:
    settings = Search.model_validate(
        {
            "space": {key: list(values) for key, values in SPACE.values.items()},
            "algorithm": algorithm,
            "candidates": 1000,
            "population": 6 if algorithm == "nsga2" else 2,
            "keep": 0.25 if algorithm == "nsga2" else 1.0,
            "rounds": rounds,
            "objectives": ["loss"],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        book = Book(Path(folder))
        return search(SPACE, settings, RUNGS, seed, TabulatedTrainer(table), book, lambda trial: None).winner.loss


if __name__ == "__main__":
    compute(Path(sys.argv[1]))
