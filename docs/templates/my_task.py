"""A task of your own: the mass of a planet from its radius. Test it in a plan that names it, see docs/plugins.md."""

import threading
from collections.abc import Iterator

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from astrofed.client.data.table import Table, read_table
from astrofed.client.site import Site, SiteSummary
from astrofed.client.task import Statistics, Task, TrainInstruction, TrainOutcome
from astrofed.client.training import train_locally
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Plan, Section

Pair = tuple[Tensor, Tensor]


class NoMasses(UserMistake):
    """A site has no planets whose radius and mass are known."""


class MassFromRadius(Task):
    """Predicts log10 of a planet's mass from log10 of its radius, in Earth's, by a model with one input and output."""

    class Options(Section):
        """Nothing to choose."""

    def __init__(self, plan: Plan, options: BaseModel, site: Site) -> None:
        super().__init__(plan, options, site)
        self._lock = threading.Lock()
        self._read: tuple[Table, Pair, Pair] | None = None

    def _data(self) -> tuple[Table, Pair, Pair]:
        """The table, and radii and masses [planet, 1] to train on and held out: every fifth planet."""
        with self._lock:
            if self._read is None:
                table = read_table(self.site.data, columns=("pl_rade", "pl_bmasse"))
                columns = (table.numbers("pl_rade", "R_earth"), table.numbers("pl_bmasse", "M_earth"))
                pairs = torch.from_numpy(np.stack(columns, axis=1))
                pairs = pairs[(pairs > 0).all(dim=1)].log10().float()
                if len(pairs) < 5:
                    raise NoMasses(f"{self.site.data} has {len(pairs)} planets with radius and mass; 5 are needed")
                held_out = torch.arange(len(pairs)) % 5 == 0
                one, other = pairs[~held_out], pairs[held_out]
                self._read = table, (one[:, :1], one[:, 1:]), (other[:, :1], other[:, 1:])
            return self._read

    def summary(self) -> SiteSummary:
        """Count the planets."""
        table, training, held_out = self._data()
        return SiteSummary(
            name=self.site.name,
            role=self.site.role,
            num_examples=len(training[0]),
            num_eval_examples=len(held_out[0]),
            num_units=len(training[0]),
            unit=table.privacy_unit,
            fingerprint=table.fingerprint,
            description=f"{len(training[0])} planets with radius and mass",
        )

    def train(self, model: nn.Module, statistics: Statistics, instruction: TrainInstruction) -> TrainOutcome:
        """Train for one round by the platform's one loop; all randomness comes from its generator."""
        radii, masses = self._data()[1]

        def batches(generator: torch.Generator) -> Iterator[Pair]:
            order = torch.randperm(len(radii), generator=generator)
            for chosen in torch.split(order, self.plan.training.batch_size):
                yield radii[chosen], masses[chosen]

        fit = train_locally(model, batches, _loss, self.plan.training, instruction, self.plan.rounds)
        return TrainOutcome(len(radii), {"loss": fit.loss})

    def evaluate(self, model: nn.Module, statistics: Statistics, *, with_baselines: bool) -> dict[str, float]:
        """Return the mean squared error in log10 of the mass, beside that of guessing the training planets' mean."""
        _, (_, masses), (radii, truth) = self._data()
        model.eval()
        with torch.no_grad():
            metrics = {"loss": float(((model(radii) - truth) ** 2).mean())}
        if with_baselines:
            metrics["baseline/mean/loss"] = float(((masses.mean() - truth) ** 2).mean())
        return metrics


def _loss(model: nn.Module, batch: Pair) -> Tensor:
    radii, masses = batch
    return ((model(radii) - masses) ** 2).mean()
