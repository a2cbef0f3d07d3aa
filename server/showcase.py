"""Maps that a local simulation keeps for its report: truth, prediction and error, beside the record of its run.

`showcase.json` names the maps and `showcase.npz` holds their arrays. They are made of a site's data, so only a
simulation, which has all data on one machine anyway, writes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from astrofed.shared.errors import UserMistake
from astrofed.shared.files import write_atomically

NAMES, ARRAYS = "showcase.json", "showcase.npz"
_AXES, _FIELDS = ("lat", "lon"), ("truth", "prediction", "error")


class ShowcaseDamaged(UserMistake):
    """A run's showcase can't be read."""


@dataclass(frozen=True)
class Map:
    """One field of one participant on its grid."""

    participant: str
    variable: str
    units: str
    level: float | None  # sigma; None: the variable has no levels
    title: str
    lat: NDArray[np.float64]  # [lat], degrees
    lon: NDArray[np.float64]  # [lon], degrees east
    truth: NDArray[np.float64]  # [lat, lon], in `units`, as are the two below
    prediction: NDArray[np.float64]
    error: NDArray[np.float64]  # prediction less truth


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    participant: str
    variable: str
    units: str
    level: float | None
    title: str
    key: str


class _Names(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    maps: tuple[_Entry, ...]


def write_showcase(run: Path, by_participant: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep what `Task.showcase` returned for some participants; where no task has maps, nothing is written.

    Raises:
        CannotWrite: disk full, or not writable.
    """
    entries: list[_Entry] = []
    arrays: dict[str, Any] = {}
    for participant, shown in by_participant.items():
        for item in shown.get("maps", ()):
            key = f"map{len(entries)}"
            named = {name: item[name] for name in ("variable", "units", "level", "title")}
            entries.append(_Entry(participant=participant, key=key, **named))
            arrays |= {f"{key}/{name}": np.asarray(item[name], np.float64) for name in (*_AXES, *_FIELDS)}
    if not entries:
        return
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(run / ARRAYS, buffer.getvalue())
    write_atomically(run / NAMES, _Names(maps=tuple(entries)).model_dump_json().encode())


def read_showcase(run: Path) -> tuple[Map, ...]:
    """Return a run's maps; none where it has no showcase.

    Raises:
        ShowcaseDamaged: a file is missing, is not what `write_showcase` wrote, or an array has the wrong shape.
    """
    if not (run / NAMES).is_file():
        return ()
    try:
        names = _Names.model_validate_json((run / NAMES).read_bytes())
        with np.load(BytesIO((run / ARRAYS).read_bytes()), allow_pickle=False) as arrays:
            return tuple(_map(entry, arrays) for entry in names.maps)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ShowcaseDamaged(
            f"the maps in {run / ARRAYS} can't be read ({reason}); delete {NAMES} to do without, or run it again"
        ) from error


def _map(entry: _Entry, arrays: Mapping[str, NDArray[Any]]) -> Map:
    found = {name: np.asarray(arrays[f"{entry.key}/{name}"], np.float64) for name in (*_AXES, *_FIELDS)}
    for name, array in found.items():
        shape = (found["lat"].size, found["lon"].size) if name in _FIELDS else (array.size,)
        if array.shape != shape or array.size < 2 or not np.isfinite(array).all():
            raise ValueError(f"{entry.key}/{name} has the shape {array.shape} or is not finite; expected {shape}")
    return Map(
        participant=entry.participant,
        variable=entry.variable,
        units=entry.units,
        level=entry.level,
        title=entry.title,
        lat=found["lat"],
        lon=found["lon"],
        truth=found["truth"],
        prediction=found["prediction"],
        error=found["error"],
    )
