"""Mode "nas": search for an architecture, then train the winner from scratch as the run that the plan asked for.

The search lies in `search/` below the run's folder: its plan, `trials.jsonl`, a run folder for each candidate, and
`found.json` with what it came to. Candidates are chosen by the training sites' held-out data; participants with role
"evaluate" are asked only about the winner.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import tomli_w
from flwr.serverapp import Grid
from pydantic import BaseModel, ConfigDict

from astrofed.server.federation import Observer
from astrofed.server.record import PLAN, OtherPlan, check_free, differences, read_plan
from astrofed.server.search.differentiable import mixed_shares, strongest
from astrofed.server.search.federated import FederatedTrainer, RunPlan
from astrofed.server.search.halving import Found, search
from astrofed.server.search.lines import read_found
from astrofed.server.search.space import Choices, Space, check_space
from astrofed.server.search.trials import Book, Trial
from astrofed.shared.files import write_atomically
from astrofed.shared.overrides import set_key
from astrofed.shared.plan import Plan, Value, load_plan
from astrofed.shared.seeds import derive_seed

FOLDER, FOUND = "search", "found.json"
SEED_BITS = 31


@runtime_checkable
class Listener(Protocol):
    """An observer that also wants a line for each candidate."""

    def said(self, line: str) -> None:
        """A candidate reached a rung, or the search is over."""


class Share(BaseModel):
    """A candidate's part in the mixture that a differentiable search trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    choices: dict[str, Value]
    share: float


class SearchRecord(BaseModel):
    """What a finished search came to, as `found.json` holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    algorithm: str
    objectives: tuple[str, ...]
    size: int  # of the space
    rounds: int  # of training, over all candidates
    trials: tuple[Trial, ...]  # each candidate at the highest rung that it reached; none of a differentiable search
    front: tuple[int, ...]  # their numbers, the lowest loss first
    shares: tuple[Share, ...] = ()  # of a differentiable search
    winner: int


def searched(grid: Grid, plan: Plan, out: Path, *, resume: bool, observer: Observer, run: RunPlan) -> Plan:
    """Search as the plan says, unless it was done already, and return the plan with the winner's values.

    Args:
        grid: where candidates are trained.
        plan: of mode "nas".
        out: the run's folder.
        resume: go on with the search that lies there.
        observer: hears of each candidate.
        run: runs a plan in a folder, going on where it was.

    Raises:
        PlanError: the space holds what can't be a candidate.
        RunExists, OtherPlan, RecordBroken: what lies in the folder is something else, or damaged.
        NothingFound: no candidate was trained to the last rung.
        Interrupted: the observer asked to stop.
    """
    assert plan.search is not None
    space = check_space(plan)
    folder = out / FOLDER
    if not resume:
        check_free(out)
    begin(folder, plan)
    rungs = plan.search.steps(plan.rounds)
    say = speaker(observer)
    inner = _for_candidates(plan, rungs)
    if plan.search.algorithm == "differentiable":
        say(f"search: {space.size} candidates mixed, {rungs[-1]} rounds")
        shares = mixed_shares(inner, space, rungs[-1], folder, run, observer)
        record, chosen = _record_of_shares(plan, space, rungs[-1], shares), strongest(shares)[1]
        say(f"winner: candidate {record.winner} with a share of {shares[chosen]:.1%}; it is trained from scratch")
    else:
        say(f"search: {plan.search.algorithm} over {space.size} candidates, rungs of {rungs} rounds")
        trainer = FederatedTrainer(inner, folder, run, observer)
        found = search(space, plan.search, rungs, plan.seed, trainer, Book(folder), lambda trial: say(_line(trial)))
        record, chosen = _record(plan, space.size, found), tuple(found.winner.choices.values())
        say(f"winner: {_line(found.winner)}; it is trained from scratch")
    write_atomically(folder / FOUND, record.model_dump_json(indent=1).encode())
    return with_values(plan, space.named(chosen))


def read_search(out: Path) -> SearchRecord | None:
    """Return what the search in a run's folder came to; None where there is none, or none that is finished.

    Raises:
        RecordBroken: the file can't be read.
    """
    return read_found(out / FOLDER / FOUND, SearchRecord)


def speaker(observer: Observer) -> Callable[[str], None]:
    """Return what tells an observer a line, if it listens to lines."""
    return observer.said if isinstance(observer, Listener) else _nothing


def _nothing(line: str) -> None:
    """Say nothing."""


def begin(folder: Path, plan: Plan) -> None:
    """Write down of which plan a search's folder is, or see that it is of this one (OtherPlan: it isn't)."""
    if (folder / PLAN).is_file():
        different = differences(read_plan(folder).to_dict(), plan.to_dict())
        if different:
            raise OtherPlan(
                f"{folder} was begun with another plan (different: {', '.join(different)}); give another --out"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / PLAN, tomli_w.dumps(plan.to_dict()).encode())


def _for_candidates(plan: Plan, rungs: tuple[int, ...]) -> Plan:
    """Candidates share a seed of their own, so that the winner's last training is another draw than its trial."""
    seed = derive_seed(plan.seed, "candidates") >> (63 - SEED_BITS)
    return plan.model_copy(update={"seed": seed, "rounds": rungs[-1], "evaluate_every": math.gcd(*rungs)})


def with_values(plan: Plan, values: Mapping[str, Value]) -> Plan:
    """Return a plan with other values of some of its keys."""
    data = plan.to_dict()
    for key, value in values.items():
        set_key(data, key, value)
    return load_plan(data)


def _record_of_shares(plan: Plan, space: Space, rounds: int, shares: dict[Choices, float]) -> SearchRecord:
    return SearchRecord(
        algorithm="differentiable",
        objectives=("loss",),
        size=space.size,
        rounds=rounds,
        trials=(),
        front=(),
        shares=tuple(
            Share(number=number, choices=space.named(choices), share=share)
            for number, (choices, share) in enumerate(shares.items(), start=1)
        ),
        winner=strongest(shares)[0],
    )


def _record(plan: Plan, size: int, found: Found) -> SearchRecord:
    assert plan.search is not None
    return SearchRecord(
        algorithm=plan.search.algorithm,
        objectives=plan.search.objectives,
        size=size,
        rounds=found.rounds,
        trials=found.trials,
        front=tuple(trial.number for trial in found.front),
        winner=found.winner.number,
    )


def _line(trial: Trial) -> str:
    values = ", ".join(f"{key.partition('.')[2]} {value}" for key, value in trial.choices.items())
    return f"candidate {trial.number} ({values}): loss {trial.loss:.4f} after {trial.rounds} rounds, " + (
        f"{trial.parameters:,} parameters"
    )
