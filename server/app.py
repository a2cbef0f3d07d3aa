"""The one ServerApp: enrols the participants, runs the plan's rounds on any engine, and leaves a run folder behind.

What to run comes with the settings given here, or as run configuration: `plan` (the resolved plan as JSON), `out` (the
run's folder) and `resume`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from astrofed.server.beginning import STATISTICS, Beginning
from astrofed.server.checkpoint import MODEL, load_arrays, save_arrays
from astrofed.server.enrolment import NotEnrolled, Roster, Statistics, check_pairs, enrol, gather_statistics
from astrofed.server.evolution.run import evolved
from astrofed.server.federation import Federation, Observer
from astrofed.server.membership import everybody
from astrofed.server.record import OtherPlan, RunRecord
from astrofed.server.search.run import searched
from astrofed.server.strategies.build import build_strategy
from astrofed.shared.files import alone_in
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import Plan, plan_from_json
from astrofed.shared.record import Enrolled, Quarantine, Round, Start

SOFTWARE = ("astrofed", "flwr", "torch", "numpy")


class Silent:
    """An observer that says nothing and never stops a run."""

    def started(self, plan: Plan, start: Start) -> None:
        """Say nothing."""

    def round_done(self, entry: Round) -> None:
        """Say nothing."""

    def should_stop(self) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class Settings:
    """What a ServerApp should run, and where its record lies."""

    plan: Plan
    out: Path
    resume: bool = False
    beginning: Beginning | None = None
    quorum: int | None = None  # training sites with which a run may begin or be resumed; None: every participant


def build_server_app(settings: Settings | None = None, observer: Observer | None = None) -> ServerApp:
    """Return the server app; without settings it takes them from the run configuration."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run_federation(grid, settings or _from_context(context), observer or Silent())

    return app


def run_federation(grid: Grid, settings: Settings, observer: Observer) -> None:
    """Run a plan to its end (or from where its record stops) and write the final model beside the record.

    Raises:
        NotEnrolled: a participant's data is missing or unusable.
        StrategyFailed, NobodyAccepted, Interrupted, CannotWrite: see `Federation.run`.
        RunExists, OtherPlan, RecordBroken: see `RunRecord`.
        InUse: another process writes into the run's folder.
    """
    with alone_in(settings.out):
        _run(grid, settings, observer)


def _run(grid: Grid, settings: Settings, observer: Observer) -> None:
    plan = settings.plan
    if plan.mode == "nas":
        plan = searched(
            grid,
            plan,
            settings.out,
            resume=settings.resume,
            observer=observer,
            run=lambda candidate, folder, hearing: _train(grid, Settings(candidate, folder, resume=True), hearing),
        )
    elif plan.mode == "evolution":
        plan, beginning = evolved(
            plan,
            settings.out,
            resume=settings.resume,
            observer=observer,
            run=lambda member, folder, hearing, begun: _train(
                grid, Settings(member, folder, resume=True, beginning=begun), hearing
            ),
        )
        settings = replace(settings, beginning=beginning)
    _train(grid, replace(settings, plan=plan), observer)


def _train(grid: Grid, settings: Settings, observer: Observer) -> None:
    plan = settings.plan
    if plan.shares_noise:
        settings = replace(settings, quorum=None)  # with fewer no round could change anything
    if settings.quorum is None and plan.strategy.membership == "open":
        settings = replace(settings, quorum=plan.strategy.quorum)
    opened = RunRecord.resume if settings.resume else RunRecord.create
    record = opened(settings.out, plan)
    strategy = build_strategy(plan)
    begun = settings.beginning or Beginning()
    initial = begun.weights({name: tensor.numpy() for name, tensor in build_model(plan).state_dict().items()})
    roster, refused = enrol(grid, plan, settings.quorum)
    check_pairs(plan, roster)
    start = Start(
        previous=record.previous,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={name: version(name) for name in SOFTWARE},
        engine=plan.engine.name,
        parameters=sum(array.size for array in initial.values()),
        initial_sha256=begun.sha256,
        enrolled=roster.enrolled,
        refused=refused,
    )
    if record.start is None:
        record.append(start)
    else:
        if settings.quorum is None:  # who is refused has said why, and that is not that its data are others
            _check_all_enrolled(refused)
        roster = _as_begun(roster, everybody(record.start, record.rounds), settings)
        if record.start.initial_sha256 != begun.sha256:
            raise OtherPlan(f"{settings.out}: the run began with other weights; begin it anew")
    if settings.quorum is None or len(roster.with_role("train")) < settings.quorum:
        _check_all_enrolled(refused)
    observer.started(plan, record.start or start)
    statistics = _statistics(grid, record, roster, begun.statistics)
    federation = Federation(grid, plan, record, roster, statistics, strategy, initial, observer)
    del initial  # the federation's, which lets go of it after the first round
    federation.run()
    save_arrays(record.folder / MODEL, federation.model)


def _check_all_enrolled(refused: Sequence[Quarantine]) -> None:
    """Raise NotEnrolled where somebody is refused."""
    if refused:
        raise NotEnrolled("; ".join(f"{site.participant} can't take part: {site.reason}" for site in refused))


def _as_begun(roster: Roster, known: Sequence[Enrolled], settings: Settings) -> Roster:
    """Return who is there again of those that a run knows: all of them, or with a quorum perhaps fewer.

    Raises:
        OtherPlan: somebody's data are not those that the run began with.
    """
    now = {site.participant: site.fingerprint for site in roster.enrolled}
    there = [site for site in known if site.participant in now or settings.quorum is None]
    if any(now.get(site.participant) != site.fingerprint for site in there):
        raise OtherPlan(f"{settings.out}: the participants' data are not those that the run began with; begin it anew")
    return Roster({site.participant: roster.nodes[site.participant] for site in there}, tuple(there))


def _statistics(grid: Grid, record: RunRecord, roster: Roster, given: Statistics | None) -> Statistics:
    """Gather and pool the statistics once, if none are given; a resumed run takes those that it began with."""
    path = record.folder / STATISTICS
    if record.rounds and path.exists():
        return load_arrays(path)
    statistics, rejected = (given, ()) if given is not None else gather_statistics(grid, record.plan, roster)
    if rejected:
        raise NotEnrolled("; ".join(f"the statistics of {site.participant}: {site.reason}" for site in rejected))
    save_arrays(path, statistics)
    return statistics


def _from_context(context: Context) -> Settings:
    config = context.run_config
    return Settings(plan_from_json(str(config["plan"])), Path(str(config["out"])), bool(config.get("resume", False)))


app = build_server_app()
