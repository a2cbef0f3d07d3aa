"""The queue: a folder for each run that was submitted. What was submitted never changes; how it stands does.

Several processes look at it at once, so each file has one writer: `job.json` is written by `submit`, `state.json` by
the supervisor and the run's worker (one of which is always silent), the wishes `stop` and `resume` by the commands of
those names.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from astrofed.server.service.sites import file_name
from astrofed.shared.errors import UserMistake
from astrofed.shared.files import write_atomically
from astrofed.shared.plan import Name, Plan, plan_from_json
from astrofed.shared.signed_plan import EXPIRES, ISSUED, PLAN, RUN, SIGNATURE

JOB, STATE, STOP, RESUME, LOG = "job.json", "state.json", "stop", "resume", "worker.log"
Status = Literal["queued", "waiting for sites", "running", "done", "failed", "stopped"]
ACTIVE: tuple[Status, ...] = ("waiting for sites", "running")
log = logging.getLogger("astrofed.server")
ENDED: tuple[Status, ...] = ("done", "failed", "stopped")


class UnknownRun(UserMistake):
    """No run of that name was submitted."""


class RunSubmitted(UserMistake):
    """A run of that name was submitted before, with another plan."""


class NothingToDo(UserMistake):
    """A run can't be stopped or resumed as it stands."""


class JobBroken(UserMistake):
    """A file of the queue can't be read."""


class Job(BaseModel):
    """What was submitted: the signed plan, and how to begin."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Name
    plan: str
    issued: int
    expires: int
    signature: str  # hexadecimal digits
    federation: Name
    sites: dict[str, str]  # by participant, in the plan's order, the fingerprint of its node's key
    wait_s: Annotated[float, Field(gt=0)]
    quorum: Annotated[int, Field(ge=1)] | None = None  # of training sites to begin with; None: all participants
    submitted: float

    @property
    def signed(self) -> dict[str, str | int | bytes]:
        """The entries of a "config" record that carry the signed plan."""
        signature = bytes.fromhex(self.signature)
        return {PLAN: self.plan, SIGNATURE: signature, RUN: self.run, ISSUED: self.issued, EXPIRES: self.expires}

    @property
    def resolved(self) -> Plan:
        """The plan."""
        return plan_from_json(self.plan)


class State(BaseModel):
    """How a run stands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Status = "queued"
    reason: str = ""  # why it failed or was stopped, or what it waits for
    round: int | None = None  # the last complete one
    rounds: int = 0
    loss: float | None = None
    crashes: int = 0  # of its worker, in a row without a round between them
    changed: float = 0.0


class JobFolder:
    """One run's folder in the queue."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / LOG

    @property
    def job(self) -> Job:
        """What was submitted.

        Raises:
            JobBroken: it can't be read.
        """
        try:
            return Job.model_validate_json((self.folder / JOB).read_bytes())
        except (OSError, ValidationError) as error:
            raise JobBroken(
                f"{self.folder / JOB} can't be read; remove {self.folder} and submit the plan again"
            ) from error

    @property
    def state(self) -> State:
        """How it stands.

        Raises:
            JobBroken: it can't be read.
        """
        try:
            return State.model_validate_json((self.folder / STATE).read_bytes())
        except FileNotFoundError:
            return State()
        except (OSError, ValidationError) as error:
            raise JobBroken(
                f"{self.folder / STATE} can't be read; remove it, and the run is begun or resumed"
            ) from error

    def note(self, **changes: object) -> State:
        """Write how the run stands now."""
        state = State.model_validate({**self.state.model_dump(), **changes, "changed": time.time()})
        write_atomically(self.folder / STATE, state.model_dump_json().encode(), flush=state.status in ENDED)
        return state

    def wish(self, name: str) -> None:
        """Leave a wish: `stop` or `resume`."""
        write_atomically(self.folder / name, b"")

    def wishes(self, name: str) -> bool:
        """Whether a wish was left."""
        return (self.folder / name).exists()

    def fulfil(self, name: str) -> None:
        """Take a wish away."""
        (self.folder / name).unlink(missing_ok=True)


class Jobs:
    """All runs that were submitted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> Iterator[JobFolder]:
        """Yield every run, in the order in which they were submitted; one whose files are damaged is left out."""
        found = []
        for path in self._folder.glob(f"*/{JOB}"):
            job = JobFolder(path.parent)
            try:
                found.append((job.job.submitted, job.folder.name, job))
                _ = job.state
            except JobBroken as error:
                log.error("%s", error)
                found = [each for each in found if each[2] is not job]
        yield from (job for _, _, job in sorted(found, key=lambda each: each[:2]))

    def get(self, run: str) -> JobFolder:
        """Return a run.

        Raises:
            UnknownRun: there is none of that name.
        """
        found = JobFolder(self._folder / file_name(run))
        if not (found.folder / JOB).is_file():
            names = [each.job.run for each in self.all()]
            raise UnknownRun(f"no run {run!r} was submitted; there are: {', '.join(names) or 'none'}")
        return found

    def submit(self, job: Job) -> bool:
        """Put a run into the queue; return whether it is new.

        Raises:
            RunSubmitted: the name is taken by a run of another plan.
        """
        folder = self._folder / file_name(job.run)
        if (folder / JOB).is_file():
            if JobFolder(folder).job.plan != job.plan:
                raise RunSubmitted(f"a run {job.run!r} with another plan was submitted; give this one a --name")
            return False
        write_atomically(folder / JOB, job.model_dump_json(indent=1).encode())
        return True

    def stop(self, run: str) -> str:
        """Ask for a run to end after its round; return what will happen.

        Raises:
            UnknownRun, NothingToDo: there is no such run, or it has ended.
        """
        found = self.get(run)
        state = found.state
        if state.status in ENDED:
            raise NothingToDo(f"run {run!r} is not going on: it is {state.status}")
        found.fulfil(RESUME)
        found.wish(STOP)
        return "leaves the queue" if state.status == "queued" else "ends after the round in progress"

    def resume(self, run: str) -> str:
        """Ask for a stopped or failed run to go on; return from where.

        Raises:
            UnknownRun, NothingToDo: there is no such run, or it goes on or is done.
        """
        found = self.get(run)
        state = found.state
        if state.status not in ("stopped", "failed") and not found.wishes(STOP):
            raise NothingToDo(f"run {run!r} need not be resumed: it is {state.status}")
        found.fulfil(STOP)
        found.wish(RESUME)
        return "goes on from the start" if state.round is None else f"goes on after round {state.round}"
