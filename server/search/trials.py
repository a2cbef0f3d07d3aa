"""What a search has tried: a line for each candidate at each rung, in `trials.jsonl`, so that a search resumes."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from astrofed.server.search.lines import read_lines
from astrofed.shared.files import append_line
from astrofed.shared.plan import Value

LINES = "trials.jsonl"
Objective = Literal["loss", "parameters", "latency"]


class Trial(BaseModel):
    """A candidate after some rounds of training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int  # of the candidate, from 1, in the order in which they were proposed
    choices: dict[str, Value]
    rung: int  # from 0
    rounds: int  # of training behind `loss`
    loss: float  # on the training sites' held-out data, a mean over the sites
    parameters: int
    latency: float | None  # seconds of one forward pass here, a median; None: not an objective

    def value(self, objective: Objective) -> float:
        """Return one of the objectives, each the smaller the better."""
        return float(getattr(self, objective))


class Book:
    """The trials of one search, read from its file and appended to it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LINES
        self.trials = read_trials(folder)

    def find(self, number: int, rung: int) -> Trial | None:
        """Return what is known of a candidate at a rung."""
        return next((t for t in self.trials if t.number == number and t.rung == rung), None)

    def add(self, trial: Trial) -> None:
        """Write one line (CannotWrite: it is not there then)."""
        append_line(self._path, trial.model_dump_json().encode(), flush=False)
        self.trials.append(trial)


def read_trials(folder: Path) -> list[Trial]:
    """Return the lines of a search's folder; a torn last line is cut off.

    Raises:
        RecordBroken: a line before the last can't be read.
    """
    return read_lines(folder / LINES, Trial)


def last_of_each(trials: Iterable[Trial]) -> list[Trial]:
    """Return each candidate at the highest rung that it reached."""
    found: dict[int, Trial] = {}
    for trial in trials:
        if trial.number not in found or trial.rung > found[trial.number].rung:
            found[trial.number] = trial
    return list(found.values())


def pareto_front(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """Return the trials that no other beats in one objective without losing in another, the lowest loss first."""
    front = [one for one in trials if not any(_dominates(other, one, objectives) for other in trials)]
    return sorted(front, key=lambda trial: (trial.loss, trial.parameters, trial.number))


def _dominates(one: Trial, other: Trial, objectives: Sequence[Objective]) -> bool:
    pairs = [(one.value(objective), other.value(objective)) for objective in objectives]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
