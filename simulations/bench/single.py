"""What one participant on the embedded engine costs beyond a bare Lightning loop of the same training.

The work is a climate network on a shipped world, nine samples a round. The bare loop is Lightning's own Trainer on the
same LightningModule, batches, optimiser and learning rates, one `fit` a round, with no logger, checkpoint or progress.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from astrofed.client.app import open_task
from astrofed.client.task import Statistics
from astrofed.client.tasks.datacube import DatacubeEmulation
from astrofed.client.tasks.datacube_batches import Batch, batches
from astrofed.client.training import LocalRound, learning_rate
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import Plan, load_plan
from astrofed.shared.seeds import derive_seed, torch_seeded
from astrofed.simulations.bench.modes_result import ModeRow, at_most
from astrofed.simulations.bench.stopwatch import RUN, Stopwatch
from astrofed.simulations.bench.turns import ratio
from astrofed.simulations.simulate import simulate
from astrofed.simulations.sites import open_simulated_site

LIGHTNING = "Lightning"


def single_rows(rounds: int) -> list[ModeRow]:
    """Run rounds of one participant and of Lightning's Trainer in turns; one thread."""
    plan = _plan(rounds)
    lightning = LightningLoop(plan)
    watch = Stopwatch({LIGHTNING: lightning}, rounds, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = simulate(plan, out=Path(folder) / "run", observer=watch).load_model()
    finally:
        torch.set_num_threads(threads)
    found = ratio(watch.per_round(RUN), watch.per_round(LIGHTNING))
    apart = max(float((a - lightning.weights[name]).abs().max()) for name, a in model.state_dict().items())
    target = at_most("a round of one participant costs at most 1.03 times Lightning's", found, 1.03)
    note = f"weights differ by at most {apart:.1e}"
    return [ModeRow("single", "one world", "time of a round / Lightning's", found, count=rounds - 2, targets=(target,), note=note)]  # fmt: skip  # noqa: E501


class LightningLoop:
    """The same rounds by Lightning's Trainer."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.model, self.round = plan, build_model(plan), 0
        task = open_task(plan, open_simulated_site(plan, 0, None))
        assert isinstance(task, DatacubeEmulation)
        self._task = task
        self._statistics: Statistics = task.statistics()
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    def run_round(self) -> None:
        """Run the next round."""
        self.round += 1
        plan, task = self.plan, self._task
        scales = task.scales(self._statistics)
        rate = learning_rate(plan.training, self.round, plan.rounds)
        module: LightningModule = LocalRound(self.model, task.loss(scales), plan.training, 0.0, rate)
        seed = derive_seed(plan.seed, "train", self.round, task.site.name)

        class Epoch:
            def __iter__(self) -> Iterator[Batch]:
                generator = torch.Generator().manual_seed(seed)
                samples = task.samples_to_train_on()
                return batches(task.world, samples, scales, generator, size=1, mirror=task.world.mirrors, roll=True)

        with warnings.catch_warnings(), torch_seeded(seed):
            warnings.simplefilter("ignore")
            Trainer(accelerator="cpu", barebones=True, max_epochs=1).fit(module, train_dataloaders=Epoch())

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights after the last round."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}


def _plan(rounds: int) -> Plan:
    return load_plan(
        {
            "name": "single",
            "mode": "single",
            "seed": 1,
            "rounds": rounds,
            "evaluate_every": rounds,
            "task": {"name": "datacube", "variables": ["ta", "ua", "ps", "ts", "rst"], "months_in": 3},
            "model": {"name": "datacube-net", "base_features": 16, "coarse_features": 24},
            "training": {"batch_size": 1, "learning_rate": 2e-3},
            "engine": {"threads": 1},
            "participants": [{"name": "earthlike", "data": "bundled:worlds/earthlike"}],
        }
    )
