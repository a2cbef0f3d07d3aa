"""Few-shot on worlds that nobody trained on: mode 'meta' against fine-tuning the federated model, from five months.

Worlds are synthetic (see `synthetic`) and unlike each other: length of day, obliquity, eccentricity, size, gravity,
pressure's heat capacity and depth of the ocean are drawn anew for every seed. Both models take as many optimiser steps
on as many samples at the same sites. Both are adapted by the same number of plain gradient steps on the same months;
the federated model's rate is the best of `RATES` at the training sites, the meta-learned one has the rate that it was
trained with.
"""

import math
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from astrofed.client.app import open_task
from astrofed.client.data.cube import write_cube
from astrofed.server.beginning import STATISTICS
from astrofed.server.checkpoint import load_arrays
from astrofed.shared.plan import Plan, load_plan
from astrofed.shared.planet import Planet
from astrofed.shared.seeds import derive_seed
from astrofed.simulations.bench.modes_result import ModeRow, interval
from astrofed.simulations.bench.result import Target
from astrofed.simulations.result import RunResult
from astrofed.simulations.simulate import simulate
from astrofed.simulations.sites import open_simulated_site
from astrofed.simulations.synthetic import EARTH_LIKE, synthetic_world

RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
TRAINED, UNSEEN = 8, 8
STEPS, SAMPLES = 60, 8  # optimiser steps of each site, and samples in each of them
ADAPTATION = 5  # steps
WORK = "unseen synthetic worlds, 5 months shown"


def world_rows(seeds: int, algorithms: Mapping[str, Mapping[str, Any]]) -> list[ModeRow]:
    """Return a row for each algorithm: by how much it beats fine-tuning, over worlds and seeds."""
    gains: dict[str, list[float]] = {name: [] for name in algorithms}
    losses: dict[str, list[float]] = {name: [] for name in (*algorithms, "federated", "fine-tuned")}
    for seed in range(1, seeds + 1):
        with tempfile.TemporaryDirectory() as folder:
            found = compare(Path(folder), seed, algorithms)
        for name, values in found.items():
            losses[name] += values
        for name in algorithms:
            gains[name] += [1 - own / other for own, other in zip(found[name], found["fine-tuned"], strict=True)]
    rows = []
    for name, values in gains.items():
        mean, low, high = interval(values)
        target = Target("the adapted model beats fine-tuning the federated one (95 % interval)", mean, low > 0)
        rows.append(
            ModeRow(
                "meta", WORK, f"{name}: error saved beside fine-tuning", mean, low, high, len(values), (target,),
                f"{statistics.fmean(losses[name]):.3f}; fine-tuned {statistics.fmean(losses['fine-tuned']):.3f}; "
                f"federated {statistics.fmean(losses['federated']):.3f}",
            )
        )  # fmt: skip
    return rows


def compare(folder: Path, seed: int, algorithms: Mapping[str, Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return, by name, each unseen world's error: the federated model's, fine-tuned, and meta-learned ones' adapted."""
    participants = _worlds(folder, seed)
    meta = {
        "episodes": STEPS,
        "support_shots": 5,
        "query_shots": 3,
        "inner_steps": ADAPTATION,
        "inner_rate": 0.03,
        "inner_clip": 1.0,
    }
    federated_plan = _plan(seed, participants, {"mode": "federated"}, meta)
    federated = simulate(federated_plan, out=folder / "federated")
    by_rate = {}
    for rate in RATES:
        plan = _plan(seed, participants, {"mode": "meta"}, {**meta, "inner_rate": rate, "algorithm": "fomaml"})
        by_rate[rate] = _adapted(plan, federated, federated.load_model())
    best = min(RATES, key=lambda rate: _mean(by_rate[rate], "train", "loss"))
    found = {
        "federated": _each(by_rate[best], "unadapted/loss"),
        "fine-tuned": _each(by_rate[best], "loss"),
    }
    for name, settings in algorithms.items():
        plan = _plan(seed, participants, {"mode": "meta"}, {**meta, **settings})
        run = simulate(plan, out=folder / name)
        found[name] = _each(_adapted(plan, run, run.load_model()), "loss")
    return found


Scores = dict[tuple[str, str], dict[str, float]]  # by role and name


def _adapted(plan: Plan, run: RunResult, model: nn.Module) -> Scores:
    """Each site's scores of a model by the plan's own adaptation."""
    statistics_ = load_arrays(run.run / STATISTICS)
    found = {}
    for index, participant in enumerate(plan.participants):
        task = open_task(plan, open_simulated_site(plan, index, None))
        found[participant.role, participant.name] = task.evaluate(model, statistics_, with_baselines=False)
    return {key: value for key, value in found.items() if math.isfinite(value["loss"])}


def _mean(scores: Scores, role: str, metric: str) -> float:
    values = [found[metric] for (own, _), found in scores.items() if own == role]
    return statistics.fmean(values) if values else math.inf


def _each(scores: Scores, metric: str) -> list[float]:
    return [found[metric] for (role, _), found in scores.items() if role == "evaluate"]


def _plan(seed: int, participants: list[dict[str, str]], changes: dict[str, Any], meta: Mapping[str, Any]) -> Plan:
    rounds = 6
    federated = changes["mode"] == "federated"
    return load_plan(
        {
            "name": "few-shot",
            "seed": seed,
            "rounds": rounds,
            "evaluate_every": rounds,
            "task": {
                "name": "datacube",
                "variables": ["ta", "ua", "va", "ps", "ts", "rst"],
                "months_in": 3,
                "held_out_months": 3,
            },
            "model": {"name": "datacube-net", "base_features": 12, "coarse_features": 12},
            "meta": dict(meta),
            "training": {
                "batch_size": SAMPLES if federated else 1,
                "epochs": STEPS if federated else 1,
                "max_steps": STEPS // rounds,
                "learning_rate": 4e-3,
                "weight_decay": 0.1,
                "gradient_clip": 1.0,
                "decay": 0.1,
            },
            "strategy": "FedAvg",
            "engine": {"threads": 1},
            "participants": participants,
            **changes,
        }
    )


def _worlds(folder: Path, seed: int) -> list[dict[str, str]]:
    participants = []
    for index in range(TRAINED + UNSEEN):
        own = derive_seed(seed, "world", index)
        path = folder / f"world{index}.zarr"
        write_cube(synthetic_world(own % 2**32, lev=3, lat=8, lon=8, planet=_planet(own)), path)
        role = "train" if index < TRAINED else "evaluate"
        participants.append({"name": f"world{index}", "data": str(path), "role": role})
    return participants


def _planet(seed: int) -> Planet:
    rng = np.random.default_rng(seed)
    return replace(
        EARTH_LIKE,
        radius_m=EARTH_LIKE.radius_m * rng.uniform(0.7, 1.6),
        gravity_m_s2=rng.uniform(6, 18),
        rotation_period_s=86400 * math.exp(rng.uniform(math.log(0.7), math.log(3))),
        obliquity_deg=rng.uniform(5, 60),
        eccentricity=rng.uniform(0, 0.3),
        heat_capacity_j_kg_k=rng.uniform(850, 1300),
        mixed_layer_depth_m=math.exp(rng.uniform(math.log(3), math.log(60))),
    )
