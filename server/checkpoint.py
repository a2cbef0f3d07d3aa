"""Checkpoints: the global model and the strategy's own state after a round, as safetensors (no pickle).

The bytes depend on the content alone, so that a resumed run's files can be compared with those of one never stopped.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from astrofed.shared.errors import UserMistake
from astrofed.shared.files import write_atomically

Arrays = dict[str, NDArray[Any]]
FOLDER, MODEL = "checkpoints", "model.safetensors"
KEPT = 2
_MODEL, _STRATEGY = "model/", "strategy/"


class CheckpointDamaged(UserMistake):
    """A checkpoint is missing, or not the one that the record names."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a round."""

    model: Arrays
    strategy_arrays: Arrays
    strategy_scalars: dict[str, Any]  # what JSON can hold


def save_checkpoint(run: Path, round_number: int, checkpoint: Checkpoint, *, flush: bool = True) -> tuple[str, str]:
    """Write a round's checkpoint; return its file name and SHA-256. For `flush` see `files.write_atomically`.

    Raises:
        CannotWrite: disk full, or not writable.
    """
    arrays = {_MODEL + name: array for name, array in checkpoint.model.items()}
    arrays |= {_STRATEGY + name: array for name, array in checkpoint.strategy_arrays.items()}
    data = _encode(arrays, {"round": round_number, "strategy": checkpoint.strategy_scalars})
    name = f"round-{round_number:05d}.safetensors"
    write_atomically(run / FOLDER / name, data, flush=flush)
    return name, hashlib.sha256(data).hexdigest()


def drop_old_checkpoints(run: Path) -> None:
    """Delete all checkpoints but the newest ones."""
    for path in sorted((run / FOLDER).glob("round-*.safetensors"))[:-KEPT]:
        path.unlink(missing_ok=True)


def load_checkpoint(run: Path, name: str, sha256: str) -> Checkpoint:
    """Read a checkpoint that the record names.

    Raises:
        CheckpointDamaged: missing, or its SHA-256 is not that of the record.
    """
    path = run / FOLDER / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointDamaged(f"checkpoint {path} can't be read: {error.strerror}; begin the run anew") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise CheckpointDamaged(
            f"checkpoint {path} has the SHA-256 {found[:12]}…, the record says {sha256[:12]}…; it was changed: "
            "put the right file back, or begin the run anew"
        )
    with safe_open(path, framework="np") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        head = json.loads(file.metadata()["astrofed"])
    return Checkpoint(
        model={key.removeprefix(_MODEL): value for key, value in arrays.items() if key.startswith(_MODEL)},
        strategy_arrays={key.removeprefix(_STRATEGY): v for key, v in arrays.items() if key.startswith(_STRATEGY)},
        strategy_scalars=head["strategy"],
    )


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays alone, such as the final model, as safetensors (errors as `save_checkpoint`)."""
    write_atomically(path, _encode(arrays, {}))


def load_arrays(path: Path) -> Arrays:
    """Read what `save_arrays` wrote.

    Raises:
        CheckpointDamaged: missing or no safetensors file.
    """
    try:
        with safe_open(path, framework="np") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointDamaged(f"{path} can't be read as safetensors: {error}") from error


def digest_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of the file that `save_arrays` writes."""
    return hashlib.sha256(_encode(arrays, {})).hexdigest()


def _encode(arrays: Mapping[str, NDArray[Any]], head: Mapping[str, Any]) -> bytes:
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    metadata = {"astrofed": json.dumps(head, sort_keys=True)}  # one key: the file's bytes must not depend on any order
    return bytes(save(whole, metadata=metadata))
