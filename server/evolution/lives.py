"""What an evolution has seen: a line for each member in each generation, in `lives.jsonl`, so that it resumes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from astrofed.server.search.lines import read_lines
from astrofed.shared.files import append_line

LINES = "lives.jsonl"


class Place(BaseModel):
    """A member's place in an evolution; all count from 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    island: int
    generation: int
    member: int

    def __str__(self) -> str:
        return f"{self.island}.{self.generation}.{self.member}"


class Life(BaseModel):
    """A member after a generation's training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: Place
    values: dict[str, int | float]  # of the keys that evolve
    origin: Literal["born", "kept", "copied", "migrated"]
    parent: Place | None  # whose weights it began with; None: weights drawn from a seed of its own
    loss: float | None  # on the island's held-out data; None: its training failed

    @property
    def rank(self) -> tuple[bool, float, int]:
        """What members of an island are ordered by, the best first."""
        return self.loss is None, self.loss or 0.0, self.place.member


class Book:
    """The lives of one evolution, read from its file and appended to it; without a folder they are only remembered."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / LINES
        self.lives = [] if folder is None else read_lines(folder / LINES, Life)

    def find(self, place: Place) -> Life | None:
        """Return what is known of a place."""
        return next((life for life in self.lives if life.place == place), None)

    def add(self, life: Life) -> None:
        """Write one line (CannotWrite: it is not there then)."""
        if self._path is not None:
            append_line(self._path, life.model_dump_json().encode(), flush=False)
        self.lives.append(life)


def best(lives: Sequence[Life]) -> Life:
    """Return the life with the lowest loss."""
    return min(lives, key=lambda life: life.rank)
