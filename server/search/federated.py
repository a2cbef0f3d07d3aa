"""Candidates trained by the federation that the plan describes, each in a run folder of its own below the search's.

A candidate that goes on at the next rung is its run, stopped after the rung before, resumed: nothing is trained twice,
and a search that was killed goes on where it was. Every candidate's training is charged to each site's ledger as the
run that it is.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from astrofed.server.federation import Interrupted, Observer
from astrofed.server.record import read_record
from astrofed.server.search.space import Choices, candidate_plan
from astrofed.shared.errors import AstrofedError
from astrofed.shared.models.base import Model, build_model
from astrofed.shared.plan import Plan
from astrofed.shared.record import Round, Start

FOLDER = "candidates"
PASSES = 7  # of a forward pass, whose median is the latency
RunPlan = Callable[[Plan, Path, Observer], None]


class NotEvaluated(AstrofedError):
    """A candidate's run has no loss at the rung."""


class FederatedTrainer:
    """Trains candidates of a plan's search."""

    def __init__(self, plan: Plan, folder: Path, run: RunPlan, observer: Observer) -> None:
        self._plan, self._folder, self._run, self._observer = plan, folder, run, observer
        self._models: dict[Choices, tuple[int, float | None]] = {}

    def parameters(self, choices: Choices) -> int:
        """Return how many parameters a candidate has."""
        return self._measured(choices)[0]

    def latency(self, choices: Choices) -> float | None:
        """Return the median seconds of one forward pass on a sample of usual size, on one thread of this machine.

        Raises:
            NoSignature: latency is an objective, and the model doesn't say what its forward takes.
        """
        return self._measured(choices)[1]

    def train(self, number: int, choices: Choices, rounds: int) -> float:
        """Go on with a candidate's run until it has had as many rounds; return its loss.

        Raises:
            Interrupted: the observer asked to stop.
            NotEvaluated: the run's record has no loss for that round.
        """
        plan = candidate_plan(self._plan, choices, f"{self._plan.name}-candidate-{number}")
        folder = self._folder / FOLDER / f"{number:04d}"
        until = Until(rounds, self._observer)
        if len(self._rounds(folder)) <= rounds:
            try:
                self._run(plan, folder, until)
            except Interrupted:
                if self._observer.should_stop():
                    raise
        found = next((entry.loss for entry in self._rounds(folder) if entry.round == rounds), None)
        if found is None:
            raise NotEvaluated(f"{folder} has no loss after round {rounds}; set evaluate_every = 1")
        return found

    def _rounds(self, folder: Path) -> list[Round]:
        return read_record(folder)[1] if (folder / "plan.toml").is_file() else []

    def _measured(self, choices: Choices) -> tuple[int, float | None]:
        if choices not in self._models:
            model = build_model(candidate_plan(self._plan, choices, self._plan.name)).eval()
            count = sum(weight.numel() for weight in model.parameters())
            asked = self._plan.search is not None and "latency" in self._plan.search.objectives
            self._models[choices] = count, forward_seconds(model) if asked else None
        return self._models[choices]


def forward_seconds(model: Model) -> float:
    """Return the median seconds of a forward pass with one sample of usual size, on one thread (NoSignature)."""
    inputs = [part.example({"batch": 1, "geological_time": 1}, seed) for seed, part in enumerate(model.signature())]
    threads, taken = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(PASSES):
                began = time.perf_counter()
                model(*inputs)
                taken.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(taken[1:])


class Until:
    """An observer that ends a run after a round, and hears the search's own observer on the way."""

    def __init__(self, rounds: int, observer: Observer) -> None:
        self._rounds, self._observer, self._done = rounds, observer, 0

    def started(self, plan: Plan, start: Start) -> None:
        """Say nothing: the search tells of candidates as a whole."""

    def round_done(self, entry: Round) -> None:
        """Remember how far the run is."""
        self._done = entry.round

    def should_stop(self) -> bool:
        """Whether the rung is reached, or the user wants to stop."""
        return self._done >= self._rounds or self._observer.should_stop()
