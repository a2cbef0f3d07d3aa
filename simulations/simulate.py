"""Run a whole federation on this machine, on the embedded or the Ray engine, and read what it came to."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from astrofed.client.app import open_task
from astrofed.client.devices import CPU, DeviceUnavailable, check_devices
from astrofed.server.app import Settings, Silent, build_server_app
from astrofed.server.beginning import STATISTICS
from astrofed.server.checkpoint import MODEL, load_arrays
from astrofed.server.federation import Observer
from astrofed.server.record import LINES
from astrofed.server.report import write_report, write_showcase
from astrofed.shared import registry
from astrofed.shared.plan import Plan, PlanError, load_plan
from astrofed.shared.subset import without_absent
from astrofed.simulations.attacking import AttackGrid
from astrofed.simulations.compatibility import check_plan
from astrofed.simulations.embedded import SERVER_NODE_ID, EmbeddedGrid
from astrofed.simulations.ray_engine import run_on_ray
from astrofed.simulations.result import RunResult, read_result
from astrofed.simulations.sites import build_simulated_client_app, folder_name, open_simulated_site

RUNS = Path("runs")
PlanSource = Plan | Path | str | Mapping[str, Any]


def simulate(
    plan: PlanSource,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    overrides: Iterable[str] = (),
    plugins: Sequence[Path | str] = (),
    observer: Observer | None = None,
    device: str = CPU,
) -> RunResult:
    """Run a plan's whole federation on this machine and return what it came to.

    Args:
        plan: a plan, its path, or its content as a mapping.
        out: the run's folder; by default a new one below `runs/`, named after the plan.
        resume: go on with the run in `out` (by default the newest of that name) from its last complete round.
        overrides: "key=value" as with `--set`.
        plugins: Python files with plug-ins, imported before the plan is checked.
        observer: told of every round.
        device: where all participants train and are evaluated, "cpu" or "cuda:N".

    Raises:
        UserMistake: the plan, the data, a plug-in or the folder; the message says what and how to mend it.
        Interrupted: the observer asked to stop; the record is kept and can be resumed.
    """
    files = [Path(plugin).resolve() for plugin in plugins]
    for file in files:
        registry.load_plugin_file(file)
    resolved = _with_threads(plan if isinstance(plan, Plan) else load_plan(_source(plan), overrides))
    check_plan(resolved)
    _check_device(device, resolved)
    run = (Path(out) if out is not None else _folder(resolved, resume)).resolve()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    try:
        _run(Settings(resolved, run, resume), observer or Silent(), files, device)
    except BaseException:
        if (run / LINES).is_file():
            write_report(run)  # of what there is; the error goes on
        raise
    _report(resolved, run)
    return read_result(run)


def train(plan: PlanSource, *, overrides: Iterable[str] = (), **options: Any) -> RunResult:
    """Run a plan with its first training participant alone (centralised); arguments as in `simulate`."""
    whole = plan if isinstance(plan, Plan) else load_plan(_source(plan), overrides)
    return simulate(single(whole), **options)


def single(plan: Plan) -> Plan:
    """Return the plan with its first training participant alone, without attack, and those that only evaluate.

    One participant has nothing to be aggregated with, so a rule that needs several is replaced by the mean.
    """
    first = plan.trainers[0].model_copy(update={"attack": None})
    others = [participant for participant in plan.participants if participant.role == "evaluate"]
    data = plan.model_copy(update={"participants": (first, *others), "mode": "single"}).to_dict()
    if plan.strategy.name in ("robust", "block-mean"):
        data["strategy"] = {"name": "FedAvg", "timeout_s": plan.strategy.timeout_s}
    return load_plan(without_absent(data))


def with_trainers(plan: Plan, count: int) -> Plan:
    """Return the plan with its first `count` training participants, and those that only evaluate.

    Raises:
        PlanError: the plan has fewer.
    """
    if count > len(plan.trainers):
        raise PlanError(f"{count} training participants are asked for, the plan has {len(plan.trainers)}")
    kept = {participant.name for participant in plan.trainers[:count]}
    participants = [p for p in plan.participants if p.role == "evaluate" or p.name in kept]
    return load_plan(without_absent(plan.model_copy(update={"participants": tuple(participants)}).to_dict()))


def _check_device(device: str, plan: Plan) -> None:
    check_devices([device], "device")
    if device != CPU and plan.engine.name == "ray":
        raise DeviceUnavailable(
            f"device: {device!r} is for the embedded engine; Ray's workers compute on the CPU: set engine.name = "
            "'embedded', or leave the device out"
        )


def _run(settings: Settings, observer: Observer, plugins: Sequence[Path], device: str) -> None:
    plan = settings.plan
    app = _Attacked(build_server_app(settings, observer), plan)
    if plan.engine.name == "ray":
        run_on_ray(app, settings.out, [p.name for p in plan.participants], plan.engine.workers, plugins)
        return
    threads = torch.get_num_threads()
    names = [participant.name for participant in plan.participants]
    client_app = build_simulated_client_app(settings.out, names, device)
    try:
        app(EmbeddedGrid(client_app, len(plan.participants), workers=plan.engine.workers), _context())
    finally:
        torch.set_num_threads(threads)


class _Attacked(ServerApp):
    """The server app, on a grid in which some participants do what the plan's attacks say."""

    def __init__(self, app: ServerApp, plan: Plan) -> None:
        super().__init__()
        self._app, self._plan = app, plan

    def __call__(self, grid: Grid, context: Context) -> None:
        self._app(AttackGrid(grid, self._plan), context)


def _context() -> Context:
    return Context(run_id=0, node_id=SERVER_NODE_ID, node_config={}, state=RecordDict(), run_config={})


def _source(plan: PlanSource) -> Path | Mapping[str, Any]:
    if isinstance(plan, Plan):
        return plan.to_dict()
    return Path(plan) if isinstance(plan, str | Path) else plan


def _with_threads(plan: Plan) -> Plan:
    """Share the cores out over the workers where the plan doesn't say how many threads each client has."""
    if plan.engine.threads is not None:
        return plan
    threads = max(1, len(os.sched_getaffinity(0)) // plan.engine.workers)
    return plan.model_copy(update={"engine": plan.engine.model_copy(update={"threads": threads})})


def _folder(plan: Plan, resume: bool) -> Path:
    """Return a folder that no run has yet, or, to resume, that of the newest run of this plan's name."""
    base = RUNS / folder_name(plan.name)
    known = [base, *(base.with_name(f"{base.name}-{number}") for number in range(2, 10_000))]
    free = next(index for index, path in enumerate(known) if not path.exists())
    return known[max(free - 1, 0)] if resume else known[free]


def _report(plan: Plan, run: Path) -> None:
    """Write the report; a finished run's also has maps, of the first honest training participant and an unseen one."""
    if (run / MODEL).is_file():
        result = read_result(run)
        model, statistics = result.load_model(), load_arrays(run / STATISTICS)
        honest = [p for p in plan.trainers if p.attack is None][:1]
        unseen = [p for p in plan.participants if p.role == "evaluate"][:1]
        pictures = {}
        for participant in (*unseen, *honest):
            site = open_simulated_site(plan, plan.participants.index(participant), None)
            pictures[participant.name] = open_task(plan, site).showcase(model, statistics)
        write_showcase(run, pictures)
    write_report(run)
