"""What a finished run came to, read from its record: for the command line, for notebooks, as JSON."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from astrofed.server.checkpoint import MODEL, load_arrays
from astrofed.server.evolution.run import read_evolution
from astrofed.server.membership import participation
from astrofed.server.record import NoRun, read_plan, read_record
from astrofed.server.search.run import read_search
from astrofed.shared.arrays import from_numpy, load_into
from astrofed.shared.models.base import build_model
from astrofed.shared.physics import METRIC, constraints_of
from astrofed.shared.plan import Plan
from astrofed.shared.record import CentralSpent, Round, Spent, Start

NOT_EVALUABLE = "not evaluable"
_BASELINE = "baseline/"


@dataclass(frozen=True)
class RunResult:
    """A run's folder and all that its record says; metrics are means over the training sites' held-out data.

    `unseen` is the same over participants with role "evaluate"; a name like "baseline/persistence/loss" in a round's
    metrics is a baseline's score on the same data.
    """

    run: Path
    plan: Plan
    rounds: tuple[Round, ...]
    start: Start | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The final model's metrics by name; those on unseen participants with the prefix "unseen/"."""
        last = self._evaluated[-1]
        own = {f"unseen/{name}": value for name, value in last.unseen.items() if not name.startswith(_BASELINE)}
        return {name: value for name, value in last.metrics.items() if not name.startswith(_BASELINE)} | own

    @property
    def baselines(self) -> dict[str, float]:
        """Each baseline's headline value ("persistence") and its other metrics ("persistence/rmse/ta", "unseen/…")."""
        first = self.rounds[0]
        return _baselines(first.metrics, "") | _baselines(first.unseen, "unseen/")

    @property
    def privacy(self) -> tuple[Spent, ...]:
        """What each participant has spent; empty without differential privacy."""
        return self.rounds[-1].privacy

    @property
    def central_privacy(self) -> CentralSpent | None:
        """What the models have cost each participant as a whole; None without privacy at the server."""
        return self.rounds[-1].central_privacy

    @property
    def physics(self) -> dict[str, dict[str, float] | str]:
        """Compliance and tolerance by constraint, or "not evaluable"; empty where the task knows no physics."""
        metrics = self._evaluated[-1].metrics
        found: dict[str, dict[str, float] | str] = {}
        for name in constraints_of(metrics):
            keys = {part: f"{METRIC}{name}/{part}" for part in ("compliance", "tolerance")}
            there = all(key in metrics for key in keys.values())
            found[name] = {part: metrics[key] for part, key in keys.items()} if there else NOT_EVALUABLE
        return found

    @property
    def model_path(self) -> Path:
        """The final model, as safetensors."""
        return self.run / MODEL

    @property
    def report(self) -> Path:
        """The run's report, one HTML file."""
        return self.run / "report.html"

    def load_model(self) -> nn.Module:
        """Return the plan's network with the final weights, in evaluation mode."""
        model = build_model(self.plan)
        load_into(model, from_numpy(load_arrays(self.model_path)))
        return model.eval()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as the command contract's JSON object."""
        return {
            "run": str(self.run),
            "mode": self.plan.mode,
            "rounds": len(self.rounds) - 1,
            "participants": [participant.name for participant in self.plan.participants],
            "metrics": self.metrics,
            "baselines": self.baselines,
            "history": [_history(entry) for entry in self.rounds],
            "privacy": [spent.model_dump() for spent in self.privacy],
            "central_privacy": None if self.central_privacy is None else self.central_privacy.model_dump(),
            "participation": [asdict(part) for part in participation(self.start, self.rounds)],
            "physics": self.physics,
            "search": None if (found := read_search(self.run)) is None else found.model_dump(mode="json"),
            "evolution": None if (own := read_evolution(self.run)) is None else own.model_dump(mode="json"),
            "model": str(self.model_path),
            "report": str(self.report),
        }

    @property
    def _evaluated(self) -> list[Round]:
        return [entry for entry in self.rounds if entry.metrics] or [self.rounds[-1]]


def read_result(run: Path) -> RunResult:
    """Return what the record of a run says, finished or not.

    Raises:
        NoRun: no run there, or none of its rounds is complete.
        RecordBroken: the record was edited or damaged.
    """
    plan = read_plan(run)
    start, rounds = read_record(run)
    if not rounds:
        raise NoRun(f"{run} holds a run of which no round is complete; go on with it by --resume")
    return RunResult(run, plan, tuple(rounds), start)


def _baselines(metrics: dict[str, float], prefix: str) -> dict[str, float]:
    found = {}
    for key, value in metrics.items():
        if key.startswith(_BASELINE):
            name, _, metric = key.removeprefix(_BASELINE).partition("/")
            found[prefix + (name if metric == "loss" else f"{name}/{metric}")] = value
    return found


def _history(entry: Round) -> dict[str, Any]:
    own = {name: value for name, value in entry.metrics.items() if not name.startswith(_BASELINE)}
    return {
        "round": entry.round,
        "loss": entry.loss,
        "metrics": own,
        "accepted": list(entry.accepted),
        "weights": entry.weights,
        "quarantined": [item.model_dump() for item in entry.quarantined],
        "skipped": entry.skipped,
        "seconds": entry.seconds,
        "bytes": entry.bytes,
    }
