"""Datacube emulation: a world's next months from the months before, learned across worlds that share no data.

The network predicts changes against the last input month in standardised units; the scales are pooled over the sites.
A training site holds out the last months of its last epoch. A site with role "evaluate" is a world that nothing was
learned from, scored in all its months.

With a [privacy] section the unit is the world, with all its months: no month, level or crop is protected by itself. Its
gradient is the mean over all training months, clipped and noised by DP-SGD at the site and charged to the site's
ledger; scales are public numbers, and neither the training loss nor the ridge's equations are told. A site has one
world, so every step sees it (sample rate 1) and its one clipped gradient stands against noise on every weight: at a
small epsilon next to nothing is learned, which the site says when it enrols. Scores on held-out months are of the
protected world itself; they are told as they are and epsilon doesn't cover them. Shapes, the planet's name and the
fingerprint are told as well.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from torch import Tensor, nn

from astrofed.client.data.cube import read_cube
from astrofed.client.privacy.protection import Protection
from astrofed.client.privacy.refusals import check_unit
from astrofed.client.privacy.units import Parts
from astrofed.client.site import Site, SiteSummary
from astrofed.client.task import Statistics, Task, TrainInstruction, TrainOutcome
from astrofed.client.tasks.datacube_baselines import known_baselines, ridge_equations
from astrofed.client.tasks.datacube_batches import Batch, batches
from astrofed.client.tasks.datacube_curriculum import coarsened, horizon
from astrofed.client.tasks.datacube_episodes import WorldEpisodes
from astrofed.client.tasks.datacube_forecast import Forecaster
from astrofed.client.tasks.datacube_objective import Objective
from astrofed.client.tasks.datacube_physics import compliance_metrics
from astrofed.client.tasks.datacube_rollout import RollOut, judge_rollout, roll_out
from astrofed.client.tasks.datacube_samples import (
    Sample,
    World,
    all_samples,
    check_length,
    held_out_samples,
    training_samples,
)
from astrofed.client.tasks.datacube_scales import Scales, public_scales, site_scales
from astrofed.client.tasks.datacube_scores import score
from astrofed.client.tasks.datacube_showcase import maps
from astrofed.client.training import train_locally
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.datacube_layout import DatacubeLayout
from astrofed.shared.plan import Plan

PRIVATE_BATCH = 2  # samples of a world whose gradients are taken at once, where the plan doesn't say


class LevelsDiffer(UserMistake):
    """A site's cube has another number of levels than those that the federation's scales were measured on."""


class DatacubeEmulation(Task):
    """Predicts a world's following months from the preceding ones, on five physical axes, with DP-SGD per world."""

    supports_privacy: ClassVar[bool] = True
    few_shot = WorldEpisodes

    class Options(DatacubeLayout):
        """The datacube's layout, and what is held out and how training samples are varied."""

        held_out_months: Annotated[int, Field(ge=1)] = 6
        """How many months at the end of the last epoch no training sample sees."""
        mirror: bool = True
        """Mirror half of the training batches at the equator (v changes its sign): the season moves by half a year."""
        roll: bool = True
        """Turn training batches by a random longitude."""
        coarse_rounds: Annotated[int, Field(ge=0)] = 0
        """How many rounds, from the first, train on a grid half as fine in latitude and longitude."""
        horizon_rounds: Annotated[int, Field(ge=0)] = 0
        """Over how many rounds the months that are trained on grow from the first target month to all of them."""

    def __init__(self, plan: Plan, options: BaseModel, site: Site) -> None:
        super().__init__(plan, options, site)
        self.options = self.Options.model_validate(options.model_dump())
        self._lock = threading.Lock()
        self._world: World | None = None
        self._coarse: World | None = None
        self._protection: Protection | None = None
        self._forecaster = Forecaster(self.options, plan.physics.fixers)
        self._objective = Objective(plan, site, self._forecaster, self.options.variables)

    @property
    def world(self) -> World:
        """The site's world, read at the first use.

        Raises:
            UserMistake: data missing, corrupt or incomplete, too few months, or the plan's privacy unit is not theirs.
        """
        with self._lock:
            if self._world is None:
                world = World(read_cube(self.site.data), self.options, self.site.name)
                check_length(world, self.options, self.options.held_out_months, self.site)
                if self.plan.privacy is not None:
                    check_unit(self.plan.privacy.unit, _unit(world), f"{self.site.name}: {self.site.data}")
                self._world = world
            return self._world

    def summary(self) -> SiteSummary:
        """Count the samples of the site's world, and say what training will spend of its privacy.

        Raises:
            BudgetSpent, BudgetUnreachable: the plan doesn't fit into what is left for the world.
        """
        world = self.world
        training = self.samples_to_train_on() if self.site.role == "train" else []
        frames = f"{world.epochs} epochs of {world.months} months"
        grid = "levels, latitudes, longitudes {} x {} x {}".format(*world.fields.shape[3:])
        return SiteSummary(
            name=self.site.name,
            role=self.site.role,
            num_examples=len(training),
            num_eval_examples=len(self.evaluation_samples()),
            num_units=1,
            unit=_unit(world),
            fingerprint=world.cube.fingerprint,
            description=f"world {world.cube.planet.name}: {frames}, {grid}"
            + (f"; {self.protection().outlook()}" if self.plan.privacy and self.site.role == "train" else ""),
        )

    def statistics(self) -> dict[str, NDArray[np.float64]]:
        """Return scales [variable, lev] and the ridge's normal equations of the training months alone.

        An unseen world (role "evaluate") contributes nothing, and a private one (its own privacy or the server's) no
        more than its number of levels.
        """
        if self.site.role != "train":
            return {}
        if self.plan.privacy is not None or self.plan.central_privacy is not None:
            return public_scales(self.world.fields.shape[3], self.options.variables)
        world, samples = self.world, self.samples_to_train_on()
        before, after = self.options.months_in, self.options.months_out
        frames = sorted({(m, e) for s in samples for m in range(s.target - before, s.target + after) for e in s.epochs})
        scales = site_scales(world.fields.numpy(), frames, world.cube.lat_deg, self.options.variables, self.site.name)
        return {**scales, **ridge_equations(world, samples)}

    def train(self, model: nn.Module, statistics: Statistics, instruction: TrainInstruction) -> TrainOutcome:
        """Train for one round on the months that are not held out.

        Without privacy the metrics are the dimensionless loss, with it what is spent so far.
        """
        scales, samples, options = self.scales(statistics), self.samples_to_train_on(), self.options
        world = self.coarse_world() if instruction.round <= options.coarse_rounds else self.world
        months = horizon(instruction.round, options.horizon_rounds, options.months_out)
        loss, privacy, training = self.loss(scales, world, months), self.plan.privacy, self.plan.training
        size = training.batch_size if privacy is None else privacy.micro_batch or PRIVATE_BATCH

        def source(generator: torch.Generator) -> Iterator[Batch]:
            return batches(
                world,
                samples,
                scales,
                generator,
                size=size,
                mirror=self.options.mirror and world.mirrors,
                roll=self.options.roll,
            )

        if privacy is not None:
            generator = torch.Generator().manual_seed(instruction.seed)  # of order, mirrors and turns, not of noise

            def share(model: nn.Module, batch: Batch) -> Tensor:
                return loss(model, batch) * len(batch.samples) / len(samples)

            whole = Parts([lambda: source(generator)], share)
            return TrainOutcome(len(samples), self.protection().train(model, whole, instruction))
        plan, split = self.plan, self._objective.split
        fit = train_locally(
            model, source, loss, training, instruction, plan.rounds, split=split, at_once=plan.engine.workers
        )
        return TrainOutcome(num_examples=len(samples), metrics={"loss": fit.loss})

    def evaluate(self, model: nn.Module, statistics: Statistics, *, with_baselines: bool) -> dict[str, float]:
        """Return errors and physics compliance on the held-out months (all months of an unseen world).

        "loss" is the root mean square error over variables and levels in units of a typical month-to-month change, so
        that persistence scores about 1 (where worlds are private, of the public scale of change); "rmse/…" are in SI.
        """
        return self.scores(model, statistics, self.evaluation_samples(), with_baselines=with_baselines)

    def scores(
        self, model: nn.Module, statistics: Statistics, samples: Sequence[Sample], *, with_baselines: bool
    ) -> dict[str, float]:
        """Return errors and physics compliance on any samples; keys as in `evaluate`."""
        world, scales = self.world, self.scales(statistics)
        predictions = list(self._forecaster.each(world, model, scales, samples))
        metrics = score(world, scales, samples, predictions, prefix="", levels=True)
        metrics |= compliance_metrics(world, samples, predictions, with_data=with_baselines)
        if with_baselines:
            own_climate = self.site.role == "train"
            for name, predict in known_baselines(world, statistics, own_climate=own_climate).items():
                guesses = [predict(world, sample) for sample in samples]
                metrics |= score(world, scales, samples, guesses, prefix=f"baseline/{name}/", levels=False)
        return metrics

    def roll_out(self, model: nn.Module, statistics: Statistics, months: int = 12) -> RollOut:
        """Return how the model fares when it predicts month after month from its own predictions."""
        scales = self.scales(statistics)
        model.eval()

        def predict(world: World, sample: Sample) -> Tensor:
            return self._forecaster.predict(world, model, scales, [sample])[0]

        return judge_rollout(self.world, scales, roll_out(self.world, predict, months))

    def showcase(self, model: nn.Module, statistics: Statistics) -> dict[str, Any]:
        """Return maps of truth, prediction and error for the middle one of the held-out months."""
        samples = self.evaluation_samples()
        sample = samples[len(samples) // 2]
        prediction = next(self._forecaster.each(self.world, model, self.scales(statistics), [sample]))
        return maps(self.world, sample, prediction)

    def protection(self) -> Protection:
        """Return what protects the site's world; the plan has a [privacy] section."""
        if self._protection is None:
            cube = self.world.cube
            self._protection = Protection(self.plan, self.site, cube.fingerprint, _unit(self.world), units=1)
        return self._protection

    def scales(self, statistics: Statistics) -> Scales:
        """Return the pooled scales (LevelsDiffer where they are of another number of levels)."""
        scales, levels = Scales.pooled(statistics), self.world.fields.shape[3]
        if scales.change.shape[3] != levels:
            raise LevelsDiffer(
                f"{self.site.name}: the cube has {levels} levels, the federation's scales {scales.change.shape[3]}; "
                "bring all cubes to the same levels"
            )
        return scales

    def coarse_world(self) -> World:
        """Return the site's world on a grid half as fine, made at the first use (OddGrid where it can't be halved)."""
        world = self.world
        with self._lock:
            if self._coarse is None:
                self._coarse = World(coarsened(world.cube, self.site.name), self.options, self.site.name)
            return self._coarse

    def loss(
        self, scales: Scales, world: World | None = None, months: int | None = None
    ) -> Callable[[nn.Module, Batch], Tensor]:
        """Return the loss of a batch (see `Objective`).

        By default of the site's world as it is, over all target months, else over the first `months`.
        """
        world = world or self.world
        return self._objective.loss(world, scales, months, physics=world is not self._coarse)

    def samples_to_train_on(self) -> list[Sample]:
        """Return the samples that are not held out."""
        return training_samples(self.world.months, self.world.epochs, self.options, self.options.held_out_months)

    def evaluation_samples(self) -> list[Sample]:
        """Return the held-out samples; of a world that only evaluates all."""
        if self.site.role == "evaluate":
            return all_samples(self.world.months, self.world.epochs, self.options)
        return held_out_samples(self.world.months, self.world.epochs, self.options, self.options.held_out_months)


def _unit(world: World) -> str:
    """What the contract calls the one privacy unit that a cube is."""
    return world.cube.attributes.get("privacy_unit", "world")
