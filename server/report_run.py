"""A run as its report sees it: the record, checked against its chain, and the plain facts that stand in it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from astrofed.server.aggregation.pipeline import Pipeline
from astrofed.server.record import LINES, NoRun, read_plan, read_record
from astrofed.server.report_numbers import count, duration, size
from astrofed.server.strategies.build import build_strategy
from astrofed.server.strategies.robust import RobustStrategy
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Plan
from astrofed.shared.record import Round, Start


@dataclass(frozen=True)
class Run:
    """What one run's folder holds."""

    plan: Plan
    start: Start
    rounds: tuple[Round, ...]  # round 0 first
    digest: str  # SHA-256 of the record's last line

    @property
    def trainers(self) -> list[str]:
        """The names of the participants that train, in the plan's order."""
        return [participant.name for participant in self.plan.trainers]

    @property
    def trained(self) -> tuple[Round, ...]:
        """The rounds after the evaluation of the initial model."""
        return self.rounds[1:]

    @property
    def done(self) -> int:
        """How many rounds of training are complete."""
        return max(len(self.rounds) - 1, 0)

    @property
    def finished(self) -> bool:
        """Whether all rounds of the plan are complete."""
        return self.done >= self.plan.rounds


def open_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        NoRun: the folder holds none, or none of whose participants has enrolled yet.
        RecordBroken: the record was edited or is damaged before its last line.
    """
    plan = read_plan(folder)
    start, rounds = read_record(folder)
    if start is None:
        raise NoRun(f"{folder} holds a run in which nobody has enrolled yet; go on with it by --resume")
    last = (folder / LINES).read_bytes().split(b"\n")[len(rounds)]
    return Run(plan, start, tuple(rounds), hashlib.sha256(last).hexdigest())


def key_facts(run: Run) -> list[tuple[str, str]]:
    """Return what identifies a run, as pairs of label and value."""
    plan, start = run.plan, run.start
    unseen = len(plan.participants) - len(run.trainers)
    facts = [
        ("mode", plan.mode),
        ("task", plan.task.name),
        ("model", f"{plan.model.name}, {count(start.parameters)} parameters"),
        ("strategy", _strategy(plan)),
        ("rounds", f"{run.done} of {plan.rounds}"),
        ("participants", f"{len(run.trainers)} train" + (f", {unseen} unseen" if unseen else "")),
        ("engine", f"{start.engine}, {plan.engine.workers} worker{'s' * (plan.engine.workers > 1)}"),
        ("seed", str(plan.seed)),
        ("begun", start.time.replace("T", " ").replace("+00:00", " UTC")),
        ("time in rounds", duration(sum(entry.seconds or 0.0 for entry in run.rounds))),
        ("arrays moved", size(sum(entry.bytes or 0 for entry in run.rounds))),
        ("software", ", ".join(f"{name} {version}" for name, version in start.versions.items())),
    ]
    if plan.privacy is not None:
        epsilon, noise = plan.privacy.epsilon, plan.privacy.noise_multiplier
        budget = f"ε ≤ {epsilon:g}" if epsilon is not None else f"noise multiplier {noise:g}"
        facts.insert(4, ("privacy", f"{budget}, δ = {plan.privacy.delta:g} per {plan.privacy.unit}"))
    if plan.central_privacy is not None:
        kept = ("time in rounds", "arrays moved")  # they would tell who took part
        facts = [(label, "not recorded" if label in kept else value) for label, value in facts]
        facts.insert(
            4,
            (
                "privacy at the server",
                f"{plan.central_privacy.mechanism}, δ = {plan.central_privacy.delta:g} per participant",
            ),
        )
    return facts


def robust_pipeline(plan: Plan) -> Pipeline | None:
    """Return the plan's robust aggregation; None where the strategy is another one, or not registered here."""
    try:
        strategy = build_strategy(plan)
    except UserMistake:  # a plug-in that this process doesn't have; the run's own process had it
        return None
    return strategy.pipeline if isinstance(strategy, RobustStrategy) else None


def _strategy(plan: Plan) -> str:
    """Return a plan's strategy in one line: "robust: nnm + krum, f = 1, equal weights"."""
    chosen, pipeline = plan.strategy, robust_pipeline(plan)
    options = "".join(f", {key} = {value}" for key, value in chosen.options.items())
    if pipeline is None:
        return f"{chosen.name}{options}"
    weights = "equal weights" if chosen.weights == "equal" else "weighted by examples"
    return f"{chosen.name}: {pipeline.name}{options}, f = {pipeline.f}, {weights}"
