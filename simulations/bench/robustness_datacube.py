"""Skill under attack on the datacube task: six real worlds, one of whose observatories lies.

Each cell trains a small datacube network for a few rounds, as a plan and through the whole platform. Its number is how
far the honest sites' error on held-out months lies below persistence's, in per cent; below 0 the model is worse.
"""

import logging
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astrofed.server.federation import NobodyAccepted
from astrofed.shared.plan import PlanError
from astrofed.simulations.bench.robustness_table import Cell, interval
from astrofed.simulations.simulate import simulate

SPLIT, LIAR, LIARS, ROUNDS = "datacube, six worlds", "continents", 1, 8
WORLDS = {
    "earthlike": "earthlike", LIAR: "w1_continents", "fast ocean": "w2_fast_ocean", "slow ocean": "w3_slow_ocean",
    "tilted land": "w4_tilted_land", "super-earth": "w5_super_earth",
}  # fmt: skip
ATTACKS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "sign flip 4": {"name": "sign-flip", "scale": 4.0},
    "ipm 3": {"name": "ipm", "epsilon": 3.0},
    "alie 1.5": {"name": "alie", "z": 1.5},
}


def measure_datacube(rule: str, pre: Sequence[str], name: str, attack: str, seeds: Sequence[int]) -> Cell:
    """Return one cell: a rule with what comes before it, against an attack."""
    try:
        found = [skill(rule, pre, attack, seed) for seed in seeds]
    except (PlanError, NobodyAccepted) as error:
        return Cell(name, SPLIT, attack, LIARS, note=str(error))
    return Cell(name, SPLIT, attack, LIARS, *interval(found))


def skill(rule: str, pre: Sequence[str], attack: str, seed: int, rounds: int = ROUNDS) -> float:
    """Train once; return the honest sites' mean skill over persistence on held-out months, in per cent."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(plan(rule, pre, attack, seed, rounds), out=Path(folder) / "run")
    first, last = result.rounds[0].sites, result.rounds[-1].sites
    honest = [name for name in WORLDS if name != LIAR]
    return statistics.mean(100 * (1 - last[name]["loss"] / first[name]["baseline/persistence/loss"]) for name in honest)


def plan(rule: str, pre: Sequence[str], attack: str, seed: int, rounds: int) -> dict[str, Any]:
    """Return the plan of one run; the mean is FedAvg, which has no defence."""
    participants: list[dict[str, Any]] = [
        {"name": name, "data": f"bundled:worlds/{world}"} for name, world in WORLDS.items()
    ]
    lie = ATTACKS[attack]
    if lie is not None:
        participants = [{**each, "attack": lie} if each["name"] == LIAR else each for each in participants]
    robust = {"name": "robust", "rule": rule, "pre": list(pre), "f": LIARS}
    return {
        "name": "robustness",
        "seed": seed,
        "rounds": rounds,
        "evaluate_every": rounds,
        "task": {"name": "datacube", "variables": ["ta", "ua", "va", "ps", "ts"], "months_in": 2, "months_out": 1,
                 "held_out_months": 6},
        "model": {"name": "datacube-net", "base_features": 8, "coarse_features": 8},
        "training": {"epochs": 1, "batch_size": 1, "optimizer": "adamw", "learning_rate": 4e-3, "gradient_clip": 1.0},
        "strategy": {"name": "FedAvg"} if rule == "mean" else robust,
        "engine": {"workers": 1, "threads": 1},
        "participants": participants,
    }  # fmt: skip
