"""How a server, its sites and its runs stand, read from its folder: works whether the server runs or not."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from astrofed.server.service.authority import Authority
from astrofed.server.service.home import ServerHome
from astrofed.server.service.jobs import JobFolder, Jobs
from astrofed.server.service.setup import open_home
from astrofed.server.service.sites import Sites, file_name
from astrofed.server.service.welcomes import rotating

ONLINE_S = 90.0  # three of a node's signs of life


@dataclass(frozen=True)
class RunStatus:
    """How one run stands."""

    run: str
    status: str
    reason: str
    round: int | None
    rounds: int
    loss: float | None
    sites: tuple[str, ...]
    folder: str
    model: str | None
    report: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        """Return it as a row of a table."""
        done = "" if self.round is None else f"{self.round} of {self.rounds}"
        return self.run, self.status, done, "" if self.loss is None else f"{self.loss:.4g}", self.reason

    def lines(self) -> Iterator[str]:
        """Yield it as lines for people."""
        done = "no round is complete yet" if self.round is None else f"round {self.round} of {self.rounds} is complete"
        yield f"run {self.run!r}: {self.status}" + (f" ({self.reason})" if self.reason else "")
        yield f"  {done}" + ("" if self.loss is None else f", loss {self.loss:.4g}")
        yield f"  sites: {', '.join(self.sites)}"
        yield f"  record: {self.folder}"
        for title, path in (("model", self.model), ("report", self.report)):
            if path is not None:
                yield f"  {title}: {path}"


@dataclass(frozen=True)
class SiteStatus:
    """How one site stands."""

    site: str
    federations: tuple[str, ...]
    revoked: bool
    seen_s_ago: float | None

    def line(self) -> str:
        """Return it as a line for people."""
        seen = "not heard of since the gateway started"
        if self.seen_s_ago is not None:
            seen = "connected" if self.seen_s_ago < ONLINE_S else f"heard of {self.seen_s_ago / 60:.0f} min ago"
        return f"  {self.site} ({', '.join(self.federations)}): {'revoked' if self.revoked else seen}"


@dataclass(frozen=True)
class ServerStatus:
    """How the server stands."""

    folder: str
    address: str
    running: bool
    certificate_until: str
    rotating: tuple[str, ...]
    sites: tuple[SiteStatus, ...]
    runs: tuple[RunStatus, ...]
    refused: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Yield it as lines for people."""
        state = "is running" if self.running else "is not running; start it with `astrofed server start`"
        yield f"the server in {self.folder} {state}"
        yield f"  sites reach it at {self.address}; its certificate is good until {self.certificate_until}"
        yield from (f"  {line}" for line in self.rotating)
        yield "sites:" if self.sites else "no site is enrolled yet"
        yield from (site.line() for site in self.sites)
        yield "runs:" if self.runs else "no run was submitted yet"
        yield from (f"  {' '.join(cell for cell in run.cells() if cell)}" for run in self.runs)
        if self.refused:
            yield "refused since the gateway started (see `astrofed server logs`):"
            yield from (f"  {count} × {reason}" for reason, count in self.refused.items())


def runs(folder: Path) -> list[RunStatus]:
    """Return how each run stands, in the order in which they were submitted."""
    home = open_home(folder)
    return [_run(home, job) for job in Jobs(home.jobs).all()]


def run_status(folder: Path, run: str) -> RunStatus:
    """Return how one run stands.

    Raises:
        UnknownRun: there is no such run.
    """
    home = open_home(folder)
    return _run(home, Jobs(home.jobs).get(run))


def server_status(folder: Path) -> ServerStatus:
    """Return how the server stands."""
    home = open_home(folder)
    running = _is_locked(home.lock)
    counts = _counts(home) if running else {}
    seen, now = counts.get("last_seen", {}), time.time()
    sites = tuple(
        SiteStatus(
            site.name, site.federations, site.revoked is not None, now - seen[site.name] if site.name in seen else None
        )
        for site in Sites(home.sites).all().values()
    )
    until = f"{Authority(home.authority).valid_until:%Y-%m-%d}"
    address = home.settings().address
    return ServerStatus(
        str(home.folder),
        address,
        running,
        until,
        tuple(rotating(home)),
        sites,
        tuple(runs(folder)),
        counts.get("refused", {}),
    )


def last_lines(folder: Path, run: str | None, count: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the title and the last lines of a run's log, or of each of the server's.

    Raises:
        UnknownRun: there is no such run.
    """
    home = open_home(folder)
    if run is not None:
        job = Jobs(home.jobs).get(run)
        files = [job.log, job.folder / "worker.out"]
    else:
        files = [*sorted(home.logs.glob("*.log")), *sorted(home.logs.glob("*.out"))]
    for file in files:
        if file.is_file() and (lines := _tail(file, count)):
            yield str(file), lines


def _tail(file: Path, count: int, most: int = 256 * 1024) -> list[str]:
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - most))
        text = opened.read().decode(errors="replace")
    return ["".join(c if c.isprintable() else "?" for c in line) for line in text.splitlines()[-count:]]


def _run(home: ServerHome, job: JobFolder) -> RunStatus:
    given, state = job.job, job.state
    out = home.runs / file_name(given.run)
    model, report = out / "model.safetensors", out / "report.html"
    return RunStatus(
        given.run,
        state.status,
        state.reason,
        state.round,
        state.rounds or given.resolved.rounds,
        state.loss,
        tuple(given.sites),
        str(out),
        str(model) if model.is_file() else None,
        str(report) if report.is_file() else None,
    )


def _counts(home: ServerHome) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(home.gateway_state.read_bytes())
        return found
    except (OSError, ValueError):
        return {}


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
