"""The planet surrogate: equilibrium temperature and radius from star and orbit, learned across observatories.

Which columns count, and why, is said in `planets_catalogue`. With a [privacy] section every planet of the training data
is protected by DP-SGD at its observatory: epsilon is composed over all rounds in the site's ledger, and the training
loss, which nothing would protect, is not told. Scores on held-out planets are told as they are, and how many planets
and measured values there are is taken to be public.
"""

import threading
from collections.abc import Iterator
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from torch import Tensor, nn

from astrofed.client.fitting import COLUMNS
from astrofed.client.privacy.gradients import Units
from astrofed.client.privacy.protection import Protection
from astrofed.client.privacy.refusals import check_unit
from astrofed.client.privacy.units import Rows, padded
from astrofed.client.site import Site, SiteSummary
from astrofed.client.task import Statistics, Task, TrainInstruction, TrainOutcome
from astrofed.client.tasks.planets_catalogue import Catalogue, read_catalogue
from astrofed.client.tasks.planets_episodes import PlanetEpisodes, in_company
from astrofed.client.tasks.planets_scores import (
    bare_metric,
    baseline_scores,
    predict,
    scored_units,
    scores,
    unit_errors,
    unit_losses,
)
from astrofed.client.training import train_locally
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Plan, Section

LEAST = 10  # planets to train on, and planets held out


class TooFewPlanets(UserMistake):
    """A site has too few planets to train on, or to hold out."""


class PlanetSurrogate(Task):
    """Predicts a planet's equilibrium temperature and radius from its star and orbit, with DP-SGD per planet."""

    supports_privacy: ClassVar[bool] = True
    few_shot = PlanetEpisodes

    class Options(Section):
        """What is held out."""

        held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
        """Share of the stars whose planets no training sees."""

    def __init__(self, plan: Plan, options: BaseModel, site: Site) -> None:
        super().__init__(plan, options, site)
        self.options = self.Options.model_validate(options.model_dump())
        self._lock = threading.Lock()
        self._catalogue: Catalogue | None = None
        self._protection: Protection | None = None

    @property
    def catalogue(self) -> Catalogue:
        """The site's planets, read at the first use; all are held out where the site only evaluates.

        Raises:
            UserMistake: data missing, corrupt or incomplete, too few planets, or the plan's privacy unit is not theirs.
        """
        with self._lock:
            if self._catalogue is None:
                share = 1.0 if self.site.role == "evaluate" else self.options.held_out
                catalogue = read_catalogue(self.site.data, share)
                self._check(catalogue)
                self._catalogue = catalogue
            return self._catalogue

    def summary(self) -> SiteSummary:
        """Count the site's planets, and say what training will spend of their privacy.

        Planets without a measured target are not counted among the samples.

        Raises:
            BudgetSpent, BudgetUnreachable: the plan doesn't fit into what is left for the dataset.
        """
        found = self.catalogue
        table = found.table
        temperatures, radii = (found.training.given.sum(dim=0) + found.held_out.given.sum(dim=0)).int().tolist()
        return SiteSummary(
            name=self.site.name,
            role=self.site.role,
            num_examples=len(found.training),
            num_eval_examples=len(found.held_out),
            num_units=found.training.num_units,
            unit=table.privacy_unit,
            fingerprint=table.fingerprint,
            description=f"{len(table)} planets: {temperatures} measured temperatures, {radii} measured radii"
            + (f"; {self.protection().outlook()}" if self.plan.privacy and self.site.role == "train" else ""),
        )

    def train(self, model: nn.Module, statistics: Statistics, instruction: TrainInstruction) -> TrainOutcome:
        """Train for one round; with privacy the metrics are what is spent so far, without it the dimensionless loss."""
        planets, privacy, rows = self.catalogue.training, self.plan.privacy, self.training_rows()
        if privacy is not None:
            index, counted = padded(planets.unit)
            units = Rows((*(column[index] for column in rows), counted.float()), _unit_loss, privacy.micro_batch)
            return TrainOutcome(len(planets), self.protection().train(model, units, instruction))

        def batches(generator: torch.Generator) -> Iterator[Units]:
            order = torch.randperm(len(planets), generator=generator)
            for chosen in torch.split(order, self.plan.training.batch_size):
                yield tuple(column[chosen] for column in rows)

        plan = self.plan
        fit = train_locally(
            model, batches, _loss, plan.training, instruction, plan.rounds, split=COLUMNS, at_once=plan.engine.workers
        )
        return TrainOutcome(len(planets), {"loss": fit.loss})

    def evaluate(self, model: nn.Module, statistics: Statistics, *, with_baselines: bool) -> dict[str, float]:
        """Return errors on the held-out planets (keys and units: `planets_scores.scores`)."""
        planets = self.catalogue.held_out
        metrics = scores(predict(model, planets), planets)
        return metrics | (baseline_scores(planets) if with_baselines else {})

    def evaluated_units(self, metric: str) -> int:
        """Return how many units with the metric's target are held out."""
        return scored_units(self.catalogue.held_out, bare_metric(metric))

    def unit_errors(self, model: nn.Module, statistics: Statistics) -> dict[str, NDArray[np.float64]]:
        """Return [unit] mean squared errors on the held-out planets."""
        planets = self.catalogue.held_out
        return unit_errors(predict(model, planets), planets)

    def training_rows(self) -> Units:
        """Return features [planet, feature], targets and which are given [planet, target], as training sees them."""
        planets = self.catalogue.training
        features, targets = planets.features, planets.targets
        if self.site.corrupt_inputs is not None:
            features = self.site.corrupt_inputs(features)
        if self.site.corrupt_targets is not None:
            targets = self.site.corrupt_targets(targets)
        return features, targets, planets.given

    def protection(self) -> Protection:
        """Return what protects the site's planets; the plan has a [privacy] section."""
        if self._protection is None:
            table, training = self.catalogue.table, self.catalogue.training
            units = training.num_units if self.plan.mode != "meta" else len(in_company(training.star))
            self._protection = Protection(self.plan, self.site, table.fingerprint, table.privacy_unit, units)
        return self._protection

    def _check(self, found: Catalogue) -> None:
        name, privacy = self.site.name, self.plan.privacy
        if privacy is not None:
            check_unit(privacy.unit, found.table.privacy_unit, f"{name}: {self.site.data}")
        short_of_training = self.site.role == "train" and len(found.training) < LEAST
        if short_of_training or found.rows_held_out < LEAST or not len(found.held_out):
            raise TooFewPlanets(
                f"{name}: of {len(found.table)} planets {len(found.training)} with a measured target are left to train "
                f"on and {found.rows_held_out} are held out, {len(found.held_out)} of them with a measured target; at "
                f"least {LEAST}, {LEAST} and 1 are needed: give a longer table or change task.held_out (now "
                f"{self.options.held_out:g})"
            )


def _loss(model: nn.Module, batch: Units) -> Tensor:
    features, targets, given = batch
    return unit_losses(model(features), targets, given).mean()


def _unit_loss(model: nn.Module, batch: Units) -> Tensor:
    """The mean loss of the planets of one unit: features, targets, given [1, planet, …] and which count [1, planet]."""
    features, targets, given, counted = (column.flatten(0, 1) for column in batch)
    return (unit_losses(model(features), targets, given) * counted).sum() / counted.sum()
