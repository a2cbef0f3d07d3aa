"""A run's folder: the resolved plan, the chained lines of `rounds.jsonl`, and how a run is created, read and resumed.

A round is complete when its line ends with a line break; a torn last line is dropped on resuming. Each line carries the
SHA-256 of the line before (the first one that of `plan.toml`), so that an edited, reordered or missing line is found.
"""

import hashlib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import ValidationError

from astrofed.server.checkpoint import FOLDER, load_checkpoint
from astrofed.shared.errors import UserMistake
from astrofed.shared.files import append_line, cannot_write, torn_files, write_atomically
from astrofed.shared.plan import Plan
from astrofed.shared.record import Round, Start

PLAN, LINES = "plan.toml", "rounds.jsonl"
_AT_FIRST = {PLAN, LINES, FOLDER, "statistics.safetensors", "report.html", "sites"}  # all there is before the first


class NoRun(UserMistake):
    """A folder that should hold a run does not."""


class RunExists(UserMistake):
    """A run should begin in a folder that holds something already."""


class RecordBroken(UserMistake):
    """A run's record was edited, or is damaged before its last line."""


class OtherPlan(UserMistake):
    """A run should be resumed with a plan that is not its own."""


class RunRecord:
    """The record of one run, open for appending."""

    def __init__(self, folder: Path, plan: Plan, start: Start | None, rounds: list[Round], last: str) -> None:
        self.folder = folder
        self.plan = plan
        self.start = start
        self.rounds = rounds
        self._last = last

    @classmethod
    def create(cls, folder: Path, plan: Plan) -> Self:
        """Begin a record in a folder that is free.

        Raises:
            RunExists: the folder holds something.
            CannotWrite: disk full, or not writable.
        """
        if plan.mode not in ("nas", "evolution"):  # whose search began in that folder, and saw that it was free
            check_free(folder)
        _remove_torn_files(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / LINES).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        text = tomli_w.dumps(plan.to_dict()).encode()
        write_atomically(folder / PLAN, text)
        return cls(folder, plan, None, [], _digest(text))

    @classmethod
    def resume(cls, folder: Path, plan: Plan) -> Self:
        """Open a run to go on with it, or begin it. A torn last line and a last round without checkpoint are dropped.

        Raises:
            OtherPlan: the folder's plan differs in a key outside [engine].
            RecordBroken: a line before the last is damaged, or the chain doesn't hold.
        """
        if not (folder / PLAN).is_file():
            return cls.create(folder, plan)
        _remove_torn_files(folder)
        stored = read_plan(folder)
        different = differences(stored.to_dict(), plan.to_dict())
        if different:
            raise OtherPlan(
                f"{folder} was begun with another plan (different: {', '.join(different)}); "
                "resume it with its own plan.toml, or begin anew with another --out"
            )
        start, rounds, last, size = _read(folder)
        path = folder / LINES
        if len(rounds) > 1 and not _has_checkpoint(folder, rounds[-1]) and _has_checkpoint(folder, rounds[-2]):
            rounds.pop()  # its checkpoint was lost in a power cut: the round is done again
            lines = path.read_bytes().split(b"\n")[: 1 + len(rounds)]
            last, size = _digest(lines[-1]), sum(len(line) + 1 for line in lines)
        if not rounds:  # nothing was trained or evaluated yet: who takes part is asked anew
            start, last, size = None, _digest((folder / PLAN).read_bytes()), 0
        if path.is_file() and path.stat().st_size > size:
            with path.open("r+b") as file:
                file.truncate(size)
        return cls(folder, stored, start, rounds, last)

    @property
    def previous(self) -> str:
        """The SHA-256 that the next line has to carry."""
        return self._last

    def append(self, line: Start | Round, *, flush: bool = True) -> None:
        """Write one line. For `flush` see `files.write_atomically`.

        Raises:
            CannotWrite: the line is not in the record then.
        """
        text = line.model_dump_json().encode()
        append_line(self.folder / LINES, text, flush=flush)
        self._last = _digest(text)
        if isinstance(line, Start):
            self.start = line
        else:
            self.rounds.append(line)


def check_free(folder: Path) -> None:
    """See that a run can begin in a folder: it is not there, or empty but for what a killed process left unfinished.

    A run of which no round is complete, such as one that was refused for its data, leaves its folder free as well; what
    its sites have spent stays in their ledgers there.

    Raises:
        RunExists: it holds something.
        CannotWrite: it can't be looked into.
    """
    try:
        found = {path.name for path in set(folder.iterdir()) - torn_files(folder)} if folder.is_dir() else set()
        if (folder.exists() and not folder.is_dir()) or (found and not _never_begun(folder, found)):
            raise RunExists(f"{folder} is not empty; give another folder with --out, or go on with its run by --resume")
    except OSError as error:
        raise cannot_write(folder, error) from error


def _never_begun(folder: Path, found: set[str]) -> bool:
    try:
        return PLAN in found and found <= _AT_FIRST and not _read(folder)[1]
    except RecordBroken:
        return False


def read_plan(folder: Path) -> Plan:
    """Return a run's resolved plan.

    Raises:
        NoRun: the folder has none.
        RecordBroken: it can't be read as a plan.
    """
    path = folder / PLAN
    if not path.is_file():
        raise NoRun(f"{folder} holds no run (no {PLAN}); give the folder that `astrofed simulate` named")
    try:
        return Plan.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise RecordBroken(f"{path} can't be read as a plan: {error}") from error


def read_record(folder: Path) -> tuple[Start | None, list[Round]]:
    """Return the lines of a run, checked against their chain (errors as `verify_run`)."""
    start, rounds, _, _ = _read(folder)
    return start, rounds


@dataclass(frozen=True)
class Verified:
    """What was found whole: lines of the record, complete rounds, checkpoints."""

    lines: int
    rounds: int
    checkpoints: int


def verify_run(folder: Path) -> Verified:
    """Check the chain of a run's record, and the checkpoints that are still there against it.

    Raises:
        NoRun: the folder has no plan.
        RecordBroken: the first line that is damaged or does not follow from the one before.
        CheckpointDamaged: a checkpoint is not the one that the record names, or the last one is missing.
    """
    start, rounds, _, _ = _read(folder)
    checked = 0
    for entry in rounds:
        if entry is rounds[-1] or (folder / FOLDER / entry.checkpoint).exists():
            load_checkpoint(folder, entry.checkpoint, entry.checkpoint_sha256)
            checked += 1
    return Verified((start is not None) + len(rounds), len(rounds), checked)


def _read(folder: Path) -> tuple[Start | None, list[Round], str, int]:
    """Return start, rounds, digest of the last line, and the length of what is complete."""
    read_plan(folder)
    path = folder / LINES
    last, start, rounds, size = _digest((folder / PLAN).read_bytes()), None, list[Round](), 0
    text = path.read_bytes() if path.is_file() else b""
    for number, line in enumerate(text.split(b"\n")[:-1], start=1):  # what follows the last line break is torn
        try:
            kind = Start if number == 1 else Round
            entry = kind.model_validate_json(line)
        except ValidationError as error:
            raise RecordBroken(f"{path}, line {number} can't be read: {error.errors()[0]['msg']}") from error
        if entry.previous != last:
            raise RecordBroken(
                f"{path}, line {number} does not follow from what stands before it: it carries {entry.previous[:12]}…, "
                f"but that is {last[:12]}…; the record was edited, reordered or cut"
            )
        if isinstance(entry, Start):
            start = entry
        else:
            if entry.round != len(rounds):
                raise RecordBroken(f"{path}, line {number} is of round {entry.round}; round {len(rounds)} is missing")
            rounds.append(entry)
        last, size = _digest(line), size + len(line) + 1
    return start, rounds, last, size


def _remove_torn_files(folder: Path) -> None:
    for path in torn_files(folder) | torn_files(folder / FOLDER):
        path.unlink(missing_ok=True)


def _has_checkpoint(folder: Path, entry: Round) -> bool:
    path = folder / FOLDER / entry.checkpoint
    return path.is_file() and _digest(path.read_bytes()) == entry.checkpoint_sha256


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def differences(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Return the keys outside [engine] in which two plans differ."""
    keys = sorted((stored.keys() | given.keys()) - {"engine"})
    return [key for key in keys if _text(stored.get(key)) != _text(given.get(key))]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)  # TOML puts tables after all other keys
