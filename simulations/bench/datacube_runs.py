"""Datacube emulators trained for the bench: ours with and without physics, and the peer, on the same worlds and budget.

All worlds' training months pass one after the other in every epoch, as a single site with all the data would have them:
what is compared are networks and losses, not federation. Worlds kept aside are seen by nothing, pooled scales included.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from astrofed.client.task import TrainInstruction
from astrofed.client.tasks.datacube import DatacubeEmulation
from astrofed.client.tasks.datacube_baselines import climatology
from astrofed.client.tasks.datacube_rollout import RollOut
from astrofed.client.tasks.datacube_scores import Scores
from astrofed.server.screening import pool_statistics
from astrofed.shared.models.base import build_model
from astrofed.shared.models.datacube_layout import DatacubeLayout
from astrofed.shared.plan import Plan, load_plan
from astrofed.shared.seeds import derive_seed, torch_seeded
from astrofed.simulations.bench.unet import count, unet_like
from astrofed.simulations.sites import open_simulated_site

TRAINED = ("earthlike", "w1_continents", "w2_fast_ocean", "w5_super_earth")
UNSEEN = ("w4_tilted_land", "w6_eccentric")
PHYSICS = {"fixers": ["mass", "hydrostatic", "radiation"], "weights": {"mass-continuity": 0.2}}
OURS, PLAIN, PEER = "datacube-net with physics", "datacube-net without physics", "plain U-Net"
PEER_RATES = (1e-3, 4e-3)
ROLLED = 12


@dataclass(frozen=True)
class Fit:
    """One network trained from one seed; scores are means over the worlds of a kind."""

    variant: str
    seed: int
    parameters: int
    held_out: float  # error on held-out months of the trained worlds at the end
    unseen: tuple[float, ...]  # error on the worlds kept aside after each epoch
    final: dict[str, float]  # the unseen worlds' scores at the end, physics included
    rollouts: dict[str, RollOut]  # by unseen world


def plan_of(seed: int, epochs: int, *, physics: bool, rate: float = 4e-3) -> Plan:
    """Return the plan that a fit follows: the quickstart's task, network and training."""
    worlds = [{"name": name, "data": f"bundled:worlds/{name}"} for name in TRAINED]
    aside = [{"name": name, "data": f"bundled:worlds/{name}", "role": "evaluate"} for name in UNSEEN]
    return load_plan(
        {
            "name": "bench model",
            "seed": seed,
            "rounds": epochs,
            "task": {"name": "datacube", "months_in": 4, "months_out": 1, "held_out_months": 6},
            "model": {"name": "datacube-net", "base_features": 32, "coarse_features": 48},
            "training": {
                "batch_size": 1, "optimizer": "adamw", "learning_rate": rate, "weight_decay": 0.3,
                "gradient_clip": 1.0, "decay": 0.05,
            },
            "physics": PHYSICS if physics else {},
            "participants": [*worlds, *aside],
        }
    )  # fmt: skip


class Worlds:
    """The sites of a plan, and the statistics pooled over those that train."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tasks: dict[str, DatacubeEmulation] = {}
        for index, participant in enumerate(plan.participants):
            options = DatacubeEmulation.Options.model_validate(plan.task.options)
            self.tasks[participant.name] = DatacubeEmulation(plan, options, open_simulated_site(plan, index, None))
        self.statistics: Mapping[str, NDArray[np.float64]] = pool_statistics(
            {index: self.tasks[name].statistics() for index, name in enumerate(TRAINED)}
        )

    def scores(self, model: nn.Module, names: tuple[str, ...], *, baselines: bool = False) -> dict[str, float]:
        """Return the mean over worlds of every metric that all of them have."""
        found = [self.tasks[name].evaluate(model, self.statistics, with_baselines=baselines) for name in names]
        keys = set.intersection(*(set(each) for each in found))
        return {key: float(np.mean([each[key] for each in found])) for key in sorted(keys)}


def fit(
    variant: str, seed: int, epochs: int, *, rate: float = 4e-3, done: Callable[[str], None] = lambda _: None
) -> Fit:
    """Train a variant from a seed for some epochs over all trained worlds, and score it after each."""
    worlds = Worlds(plan_of(seed, epochs, physics=variant == OURS, rate=rate))
    model = network(variant, worlds.plan)
    unseen = []
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(TRAINED), generator=torch.Generator().manual_seed(derive_seed(seed, f"{epoch}")))
        for index in order.tolist():
            name = TRAINED[index]
            instruction = TrainInstruction(epoch, derive_seed(seed, f"{epoch} {name}"))
            worlds.tasks[name].train(model, worlds.statistics, instruction)
        unseen.append(worlds.scores(model, UNSEEN)["loss"])
        done(f"{variant}, seed {seed}, epoch {epoch} of {epochs}: {unseen[-1]:.4f}")
    rollouts = {name: worlds.tasks[name].roll_out(model, worlds.statistics, ROLLED) for name in UNSEEN}
    final = worlds.scores(model, UNSEEN)
    held_out = worlds.scores(model, TRAINED)["loss"]
    return Fit(variant, seed, count(model), held_out, tuple(unseen), final, rollouts)


def network(variant: str, plan: Plan) -> nn.Module:
    """Return a variant's network, its weights drawn from the plan's seed."""
    ours = build_model(plan)
    if variant != PEER:
        return ours
    with torch_seeded(derive_seed(plan.seed, "model")):
        return unet_like(DatacubeLayout.of_plan(plan), count(ours))


def baselines(epochs: int) -> dict[str, float]:
    """Return the baselines' errors: on held-out months of the trained worlds, and on the unseen worlds ("unseen/…").

    An unseen world's climatology is the mean of its own other epochs, which no network sees anything of.
    """
    worlds = Worlds(plan_of(0, epochs, physics=False))
    model = build_model(worlds.plan)
    found: dict[str, float] = {}
    for prefix, names in (("", TRAINED), ("unseen/", UNSEEN)):
        scores = worlds.scores(model, names, baselines=True)
        found |= {f"{prefix}{key}": value for key, value in scores.items() if key.startswith("baseline/")}
    own = [_climatology(worlds.tasks[name], worlds.statistics) for name in UNSEEN]
    return found | {"unseen/baseline/climatology/loss": float(np.mean(own))}


def _climatology(task: DatacubeEmulation, statistics: Mapping[str, NDArray[np.float64]]) -> float:
    world = task.world
    scores = Scores(world.layout.variables, world.area, task.scales(statistics))
    for sample in task.evaluation_samples():
        scores.add(climatology(world, sample), world.targets(sample), sample.scored)
    return scores.headline()
