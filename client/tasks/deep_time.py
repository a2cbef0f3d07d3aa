"""The deep-time task: planet and atmosphere evolve together over geological time, learned as a sequence.

Each site has one history, of an interior or of a planet and its star. The model learns steps from roll-outs within the
history's early part. It is tested by one roll-out over all of its late part, hundreds of millions of years, from its
own predictions. A history that is only evaluated gives the model the last two states before its late part and no more.
"""

import threading
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from astrofed.client.fitting import COLUMNS
from astrofed.client.site import Site, SiteSummary
from astrofed.client.task import Statistics, Task, TrainInstruction, TrainOutcome
from astrofed.client.tasks.deep_time_histories import History, NoHistory, read_history
from astrofed.client.tasks.deep_time_scores import BASELINES, compliance, model_step, scores
from astrofed.client.training import train_locally
from astrofed.shared.models.history_layout import NAMES
from astrofed.shared.plan import Plan, Section

Batch = tuple[Tensor, Tensor, Tensor]
"""Windows [sample, moment, quantity], what is given [sample, quantity], ageing after each moment [sample, moment]."""
LEAST = 10  # windows to train on


class DeepTime(Task):
    """Steps a world's interior, or a planet's atmosphere and its star, through geological time."""

    class Options(Section):
        """What is held out, and how the model is trained."""

        stride: Annotated[int, Field(ge=1)] = 5
        """Rows of the table that one step spans."""
        held_out: Annotated[float, Field(gt=0, lt=1)] = 0.4
        """Share of the history, its end, that no training sees."""
        horizon: Annotated[int, Field(ge=1)] = 8
        """Steps of a roll-out in training."""

    def __init__(self, plan: Plan, options: BaseModel, site: Site) -> None:
        super().__init__(plan, options, site)
        self.options = self.Options.model_validate(options.model_dump())
        self._lock = threading.Lock()
        self._history: History | None = None

    @property
    def history(self) -> History:
        """The site's history, read at the first use.

        Raises:
            UserMistake: data missing or no history, or too short.
        """
        with self._lock:
            if self._history is None:
                found = read_history(self.site.data, self.options.stride, self.options.held_out)
                windows, late = self._windows(found), len(found.times) - found.split
                if windows < LEAST or late < 1:
                    raise NoHistory(
                        f"{self.site.name}: {len(found.times)} steps give {windows} roll-outs to train on and {late} "
                        f"held-out steps; at least {LEAST} and 1 are needed: lower task.stride or task.horizon"
                    )
                self._history = found
            return self._history

    def summary(self) -> SiteSummary:
        """Count the roll-outs and the held-out steps."""
        found = self.history
        quantities = [name for name, there in zip(NAMES, found.given.tolist(), strict=True) if there]
        trains = self.site.role == "train"
        return SiteSummary(
            name=self.site.name,
            role=self.site.role,
            num_examples=self._windows(found) if trains else 0,
            num_eval_examples=len(found.times) - found.split,
            num_units=1 if trains else 0,
            unit=found.unit,
            fingerprint=found.fingerprint,
            description=f"{len(quantities)} quantities, {found.times[0]:.3g} to {found.times[-1]:.3g} Gyr in steps of "
            f"{1000 * found.step:.3g} Myr, held out from {found.times[found.split]:.3g} Gyr",
        )

    def train(self, model: nn.Module, statistics: Statistics, instruction: TrainInstruction) -> TrainOutcome:
        """Train for one round on roll-outs within the early part."""
        found = self.history
        length = 2 + self.options.horizon
        early = found.states[: found.split].float()
        windows = early.unfold(0, length, 1).transpose(1, 2)  # [window, moment, quantity]
        ageing = found.ageing[: found.split].unfold(0, length, 1)
        if self.site.corrupt_inputs is not None:
            windows = torch.cat([self.site.corrupt_inputs(windows[:, :2]), windows[:, 2:]], dim=1)
        if self.site.corrupt_targets is not None:
            windows = torch.cat([windows[:, :2], self.site.corrupt_targets(windows[:, 2:])], dim=1)

        def batches(generator: torch.Generator) -> Iterator[Batch]:
            order = torch.randperm(len(windows), generator=generator)
            for chosen in torch.split(order, self.plan.training.batch_size):
                yield windows[chosen], found.given.expand(len(chosen), -1), ageing[chosen]

        plan = self.plan
        fit = train_locally(
            model, batches, _loss, plan.training, instruction, plan.rounds, split=COLUMNS, at_once=plan.engine.workers
        )
        return TrainOutcome(len(windows), {"loss": fit.loss})

    def evaluate(self, model: nn.Module, statistics: Statistics, *, with_baselines: bool) -> dict[str, float]:
        """Return the metrics of the roll-out over the late part (keys and units: `deep_time_scores.scores`)."""
        model.eval()
        metrics = scores(self.history, model_step(model, self.history))
        for name, step in BASELINES.items() if with_baselines else ():
            metrics |= {f"baseline/{name}/{key}": value for key, value in scores(self.history, step).items()}
        if with_baselines:
            kept = compliance(self.history, self.history.states[self.history.split :])
            metrics |= {f"baseline/data/{key}": value for key, value in kept.items() if key.endswith("compliance")}
        return metrics

    def _windows(self, history: History) -> int:
        return max(history.split - self.options.horizon - 1, 0)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error of a roll-out over its steps and the given quantities, dimensionless."""
    windows, given, ageing = batch
    states, total = windows[:, :2], windows.new_zeros(())
    for moment in range(2, windows.shape[1]):
        following = model(states, given, ageing[:, moment - 1, None])
        total = total + ((following - windows[:, moment]).square() * given).sum() / given.sum()
        states = torch.stack([states[:, 1], following], dim=1)
    return total / (windows.shape[1] - 2)
