"""The transits task: a planet's size from its transits, learned across stars whose photometry stays where it is.

Each site has one star. It learns from transits that are computed and put into its star's own flux, and is tested by
such in the late part of the light curve, which no training sees, and by the real planets, which no training sees
either. What comes out is the likely radius ratio and duration with their spread, under the injections' priors.

All windows are of one star: its light curve is one privacy unit, and nothing but noise could hide it. So plans with a
[privacy] section are refused.
"""

import threading
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from astrofed.client.fitting import COLUMNS
from astrofed.client.site import Site, SiteSummary
from astrofed.client.task import Statistics, Task, TrainInstruction, TrainOutcome
from astrofed.client.tasks.transits_photometry import Photometry, read_photometry
from astrofed.client.tasks.transits_samples import Samples, injected, real
from astrofed.client.tasks.transits_scores import baseline_scores, known_error, known_planets, predict, reach, scores
from astrofed.client.training import train_locally
from astrofed.shared.plan import Plan, Section
from astrofed.shared.seeds import derive_seed
from astrofed.shared.uncertainty import gaussian_nll

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Light curves [sample, channel, bin], scalars [sample, scalar], targets and which are given [sample, target]."""


class Transits(Task):
    """Predicts a planet's radius ratio and transit duration; learned from transits put into real stars' flux."""

    class Options(Section):
        """How many transits are injected, and where."""

        injections: Annotated[int, Field(ge=20, le=100_000)] = 3000
        """Planets that are put into a star's flux to train on."""
        tests: Annotated[int, Field(ge=20, le=100_000)] = 600
        """Planets that are put into the held-out flux; a random half calibrates intervals, the others test them."""
        held_out: Annotated[float, Field(gt=0, lt=1)] = 0.4
        """Share of the light curve's time, its end, that no training sees."""

    def __init__(self, plan: Plan, options: BaseModel, site: Site) -> None:
        super().__init__(plan, options, site)
        self.options = self.Options.model_validate(options.model_dump())
        self._lock = threading.Lock()
        self._read: _Read | None = None

    @property
    def data(self) -> "_Read":
        """The site's star and its samples, made at the first use; all time is held out where the site only evaluates.

        Raises:
            UserMistake: data missing or no photometry, or too few cadences to put transits into.
        """
        with self._lock:
            if self._read is None:
                star = read_photometry(self.site.data)
                trains = self.site.role == "train"
                share = self.options.held_out if trains else 1.0
                early = star.time < star.time[-1] - share * np.ptp(star.time)
                name = star.fingerprint
                self._read = _Read(
                    star,
                    injected(star, early, self.options.injections, derive_seed(self.plan.seed, "injections", name))
                    if trains
                    else None,
                    injected(star, ~early, self.options.tests, derive_seed(0, "test injections", name)),
                    real(star),
                )
            return self._read

    def summary(self) -> SiteSummary:
        """Count the injections; the star is the one privacy unit."""
        star, training, tests, _ = self.data
        planets = ", ".join(planet.name for planet in star.known.planets)
        return SiteSummary(
            name=self.site.name,
            role=self.site.role,
            num_examples=len(training) if training else 0,
            num_eval_examples=len(tests),
            num_units=1 if training else 0,
            unit=star.unit,
            fingerprint=star.fingerprint,
            description=f"star {star.star}: {len(star.time)} cadences over {np.ptp(star.time):.0f} days; "
            + (f"known planets, never trained on: {planets}" if planets else "no known planets"),
        )

    def train(self, model: nn.Module, statistics: Statistics, instruction: TrainInstruction) -> TrainOutcome:
        """Train for one round on the injections, half of them, drawn anew, turned round in time."""
        training, plan = self.data.training, self.plan
        assert training is not None  # of a site that trains
        series, targets = training.seen.series, training.targets
        if self.site.corrupt_inputs is not None:
            series = self.site.corrupt_inputs(series)
        if self.site.corrupt_targets is not None:
            targets = self.site.corrupt_targets(targets)

        def batches(generator: torch.Generator) -> Iterator[Batch]:
            order = torch.randperm(len(training), generator=generator)
            for chosen in torch.split(order, plan.training.batch_size):
                turned = torch.rand(len(chosen), 1, 1, generator=generator) < 0.5
                curves = torch.where(turned, series[chosen].flip(-1), series[chosen])
                yield curves, training.seen.scalars[chosen], targets[chosen], training.given[chosen]

        fit = train_locally(
            model, batches, _loss, plan.training, instruction, plan.rounds, split=COLUMNS, at_once=plan.engine.workers
        )
        return TrainOutcome(len(training), {"loss": fit.loss})

    def evaluate(self, model: nn.Module, statistics: Statistics, *, with_baselines: bool) -> dict[str, float]:
        """Return scores on held-out injections and on the real planets (keys and units: `transits_scores`)."""
        star, _, tests, planets = self.data
        mean, spread = predict(model, tests.seen)
        metrics = scores(mean, spread, tests, self.site.name)
        if len(planets):
            own, own_spread = predict(model, planets.seen)
            metrics |= known_error(own, planets)
            metrics |= known_planets(own, own_spread, star.known, reach(mean, spread, tests, self.site.name))
        return metrics | (baseline_scores(tests, planets) if with_baselines else {})


class _Read(NamedTuple):
    """What a site's data come to."""

    star: Photometry
    training: Samples | None
    tests: Samples
    real: Samples


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    """Negative log likelihood, nats in widths, summed over the targets that are given; a mean over samples."""
    series, scalars, targets, given = batch
    out = model(series, scalars)
    return (gaussian_nll(out[..., 0], out[..., 1], targets) * given).sum(dim=1).mean()
