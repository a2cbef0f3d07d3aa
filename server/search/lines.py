"""What a search or an evolution writes: lines of JSON that grow while it goes on, and one file of what it found."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from astrofed.server.record import RecordBroken

LineT = TypeVar("LineT", bound=BaseModel)


def read_found(path: Path, kind: type[LineT]) -> LineT | None:
    """Return what a finished search came to; None where there is none, or none that is finished.

    Raises:
        RecordBroken: the file can't be read.
    """
    if not path.is_file():
        return None
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise RecordBroken(f"{path} can't be read: {error.errors()[0]['msg']}") from error


def read_lines(path: Path, kind: type[LineT]) -> list[LineT]:
    """Return a file's lines, none where it is not there; a torn last line is cut off.

    Raises:
        RecordBroken: a line before the last can't be read.
    """
    if not path.is_file():
        return []
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    if torn:
        with path.open("r+b") as file:
            file.truncate(len(whole) + 1 if whole else 0)
    try:
        return [kind.model_validate_json(line) for line in whole.split(b"\n") if line]
    except ValidationError as error:
        raise RecordBroken(f"{path} can't be read: {error.errors()[0]['msg']}; begin the search anew") from error
