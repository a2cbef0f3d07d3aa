"""The spectrum task: a planet's transit depth by wavelength, learned by teams that each hold an instrument mode's bins.

Each site trains on its bins but a random share, which test it. A site that only evaluates is tested in all of its bins:
does what the others learned predict an instrument that none of them has?

Depths are learned in public units that the plan gives, so sites tell nothing before training begins. All bins are of
one star: they are one privacy unit, and nothing but noise could hide it. So plans with a [privacy] section are refused.
"""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from astrofed.client.fitting import COLUMNS
from astrofed.client.site import Site, SiteSummary
from astrofed.client.task import Statistics, Task, TrainInstruction, TrainOutcome
from astrofed.client.tasks.spectrum_bins import Bins, Spectrum, read_spectrum
from astrofed.client.tasks.spectrum_scores import baseline_scores, intervals, measured, predict, scores
from astrofed.client.training import train_locally
from astrofed.shared.models.spectrum_layout import DEPTH
from astrofed.shared.plan import Plan, Section
from astrofed.shared.uncertainty import gaussian_nll

Batch = tuple[Tensor, Tensor, Tensor]
"""Bins [bin, edge], depths [bin, 1] and their errors [bin, 1]; see `spectrum_scores.Measured`."""
Ppm = Annotated[float, Field(gt=0, le=1e6)]


class SpectrumTask(Task):
    """Predicts a planet's transit depth at any wavelength; learned from the bins of several instruments."""

    class Options(Section):
        """The depth's scale, and what is held out."""

        held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
        """Share of a site's bins, drawn by the plan's seed, that no training sees."""
        depth: Ppm = DEPTH.centre
        """About what the planet's depth is, ppm; predictions begin there."""
        width: Ppm = DEPTH.width
        """About how much depths differ, ppm."""

    def __init__(self, plan: Plan, options: BaseModel, site: Site) -> None:
        super().__init__(plan, options, site)
        self.options = self.Options.model_validate(options.model_dump())
        self.target = replace(DEPTH, centre=self.options.depth, width=self.options.width)
        self._lock = threading.Lock()
        self._read: _Read | None = None

    @property
    def data(self) -> "_Read":
        """The site's spectrum and its bins, read at the first use; all are held out where the site only evaluates.

        Raises:
            UserMistake: data missing or no spectrum.
        """
        with self._lock:
            if self._read is None:
                found = read_spectrum(self.site.data)
                training, tests = (
                    found.split(self.options.held_out, self.plan.seed)
                    if self.site.role == "train"
                    else (None, found.bins)
                )
                self._read = _Read(found, training, tests)
            return self._read

    def summary(self) -> SiteSummary:
        """Count the bins; the star is the one privacy unit."""
        found, training, tests = self.data
        middles = found.bins.wavelength
        return SiteSummary(
            name=self.site.name,
            role=self.site.role,
            num_examples=len(training) if training else 0,
            num_eval_examples=len(tests),
            num_units=1 if training else 0,
            unit=found.unit,
            fingerprint=found.fingerprint,
            description=f"star {found.star}, {found.mode}: "
            f"{len(middles)} bins at {middles[0]:.3g} to {middles[-1]:.3g} um",
        )

    def train(self, model: nn.Module, statistics: Statistics, instruction: TrainInstruction) -> TrainOutcome:
        """Train for one round on the site's bins."""
        training, plan = self.data.training, self.plan
        assert training is not None  # of a site that trains
        edges, targets, error = measured(training, self.target)
        if self.site.corrupt_inputs is not None:
            edges = self.site.corrupt_inputs(edges)
        if self.site.corrupt_targets is not None:
            targets = self.site.corrupt_targets(targets)

        def batches(generator: torch.Generator) -> Iterator[Batch]:
            order = torch.randperm(len(training), generator=generator)
            for chosen in torch.split(order, plan.training.batch_size):
                yield edges[chosen], targets[chosen], error[chosen]

        fit = train_locally(
            model, batches, _loss, plan.training, instruction, plan.rounds, split=COLUMNS, at_once=plan.engine.workers
        )
        return TrainOutcome(len(training), {"loss": fit.loss})

    def evaluate(self, model: nn.Module, statistics: Statistics, *, with_baselines: bool) -> dict[str, float]:
        """Return scores on held-out bins (keys and units: `spectrum_scores.scores` and `.intervals`)."""
        _, training, tests = self.data
        seen = measured(tests, self.target)
        mean, spread = predict(model, seen.edges)
        metrics = scores(mean, spread, seen, self.target)
        metrics |= intervals(mean, spread, seen, self.site.name, self.target)
        return metrics | (baseline_scores(training, tests, self.target) if with_baselines else {})


class _Read(NamedTuple):
    """What a site's data come to."""

    spectrum: Spectrum
    training: Bins | None
    tests: Bins


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    """Negative log likelihood of the depths, nats in widths: the variance is the network's and the bin's; a mean."""
    edges, depth, error = batch
    out = model(edges)
    return gaussian_nll(out[:, :1], torch.hypot(out[:, 1:], error), depth).mean()
