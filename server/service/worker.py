"""A run's own process: waits for its sites, runs the federation on the link, and writes record, model and report.

Killed at any moment, it is started again and goes on from the record. Its exit code says how the run ended.

    the supervisor starts it:  python -m astrofed.server.service.worker HOME JOB
"""

import logging
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from astrofed.server.service.home import ServerHome
from astrofed.server.service.jobs import STOP, JobFolder
from astrofed.server.service.sites import file_name
from astrofed.shared.errors import AstrofedError, UserMistake
from astrofed.shared.files import CannotWrite
from astrofed.shared.plan import Plan
from astrofed.shared.record import Round, Start
from astrofed.shared.signed_plan import with_part

DONE, FAILED, STOPPED = 0, 10, 11
POLL_S = 0.25
log = logging.getLogger("astrofed.worker")


class SitesMissing(UserMistake):
    """Too few of a run's sites came within the time that it waits."""


class RunStopped(AstrofedError):
    """The coordinator stopped the run before it began."""


class Watcher:
    """Writes down how the run goes, and looks whether it should stop."""

    def __init__(self, job: JobFolder) -> None:
        self._job = job

    def started(self, plan: Plan, start: Start) -> None:
        """The participants have enrolled."""
        out = f"; without {', '.join(item.participant for item in start.refused)}" if start.refused else ""
        log.info("%d sites enrolled%s; %d parameters", len(start.enrolled), out, start.parameters)
        self._job.note(status="running", reason="", rounds=plan.rounds)

    def round_done(self, entry: Round) -> None:
        """A round is in the record."""
        loss = "" if entry.loss is None else f", loss {entry.loss:.6g}"
        kept_out = "".join(f"; kept out {item.participant}: {item.reason}" for item in entry.quarantined)
        skipped = f"; skipped: {entry.skipped}" if entry.skipped else ""
        log.info(
            "round %d: %d accepted%s, %.2f s%s%s",
            entry.round,
            len(entry.accepted),
            loss,
            entry.seconds,
            skipped,
            kept_out,
        )
        self._job.note(round=entry.round, loss=entry.loss, crashes=0)

    def said(self, line: str) -> None:
        """A search or an evolution is so far."""
        log.info("%s", line)
        self._job.note(status="running", reason=line, crashes=0)

    def should_stop(self) -> bool:
        """Whether the coordinator asked for it."""
        return self._job.wishes(STOP)


def work(home: ServerHome, job: JobFolder) -> int:
    """Do a run to its end; return the exit code."""
    from astrofed.server.federation import Interrupted

    try:
        _run(home, job)
    except (Interrupted, RunStopped) as error:
        log.info("%s", error)
        job.note(status="stopped", reason=str(error))
        return STOPPED
    except UserMistake as error:
        log.error("%s", error)
        with suppress(CannotWrite):  # the supervisor writes it down as soon as there is room
            job.note(status="failed", reason=str(error))
        return FAILED
    job.note(status="done", reason="")
    return DONE


def _run(home: ServerHome, job: JobFolder) -> None:
    from astrofed.server.app import Settings, run_federation
    from astrofed.server.report import write_report
    from astrofed.server.service.link_grid import LinkGrid

    given = job.job
    plan, out = given.resolved, home.runs / file_name(given.run)
    if home.settings().run_threads is not None:
        import torch

        torch.set_num_threads(home.settings().run_threads or 1)
    quorum = plan.strategy.quorum if given.quorum is None and plan.strategy.membership == "open" else given.quorum
    grid = LinkGrid(home.link_socket, given.run, given.sites, lambda plan: with_part(given.signed, plan), home.blobs)
    try:
        _wait_for_sites(grid.online, plan, quorum, given.wait_s, job)
        try:
            run_federation(grid, Settings(plan, out, resume=True, quorum=quorum), Watcher(job))
        finally:
            if (out / "rounds.jsonl").is_file():
                write_report(out)
    finally:
        grid.close()


def _wait_for_sites(
    online: Callable[[], list[str]], plan: Plan, quorum: int | None, wait_s: float, job: JobFolder
) -> None:
    """Wait until all sites are there, or the time is over and a quorum of training sites is.

    Raises:
        SitesMissing: it isn't.
        RunStopped: the coordinator stopped the run meanwhile.
    """
    deadline = time.monotonic() + wait_s
    trainers = {participant.name for participant in plan.trainers}
    told = None
    while True:
        here = online()
        missing = [participant.name for participant in plan.participants if participant.name not in here]
        if not missing:
            return
        if job.wishes(STOP):
            raise RunStopped("stopped while it waited for its sites")
        if time.monotonic() > deadline:
            break
        if missing != told:
            told = missing
            log.info("waiting for %s", ", ".join(missing))
            job.note(status="waiting for sites", reason=f"not connected: {', '.join(missing)}", rounds=plan.rounds)
        time.sleep(POLL_S)
    count = len(trainers & set(here))
    if quorum is None or count < quorum:
        wanted = f"all {len(plan.participants)} participants" if quorum is None else f"{quorum} training sites"
        raise SitesMissing(
            f"after {wait_s:g} s these sites are not connected: {', '.join(missing)}; the run needs {wanted}. "
            "Ask them to start `astrofed client start`, then: astrofed server resume; or submit with --quorum"
        )
    log.warning("begins without %s", ", ".join(missing))


def limit_memory(gigabytes: float | None) -> None:
    """Bound this process's address space."""
    if gigabytes is not None:
        size = int(gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


if __name__ == "__main__":
    from astrofed.server.service.process import begin

    own_job = JobFolder(Path(sys.argv[2]))
    with begin("worker", Path(sys.argv[1]), own_job.log) as own_home:
        limit_memory(own_home.settings().run_memory_gb)
        code = work(own_home, own_job)
    sys.exit(code)
