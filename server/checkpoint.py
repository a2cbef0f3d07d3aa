"""Checkpoints: the global model and the strategy's own state after a round, as safetensors (no pickle).

The bytes depend on the content alone, so that a resumed run's files can be compared with those of one never stopped.
They are written where they lie: the library's own function needs a copy of the whole model.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from astrofed.shared.errors import UserMistake
from astrofed.shared.files import write_pieces_atomically

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
    name, digest = f"round-{round_number:05d}.safetensors", hashlib.sha256()
    pieces = _pieces(arrays, {"round": round_number, "strategy": checkpoint.strategy_scalars})
    write_pieces_atomically(run / FOLDER / name, _hashed(pieces, digest), flush=flush)
    return name, digest.hexdigest()


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
        with path.open("rb") as whole:
            found = hashlib.file_digest(whole, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointDamaged(f"checkpoint {path} can't be read: {error.strerror}; begin the run anew") from error
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
    write_pieces_atomically(path, _pieces(arrays, {}))


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
    digest = hashlib.sha256()
    for piece in _pieces(arrays, {}):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(arrays: Mapping[str, NDArray[Any]], head: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    """Yield a safetensors file piece by piece: a header in JSON, then the arrays' values where they lie.

    Wider types come first, so that every array is aligned; of one width they are in the order of their names.
    """
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    whole = {name: np.asarray(arrays[name], order="C") for name in order}
    described: dict[str, Any] = {"__metadata__": {"astrofed": json.dumps(head, sort_keys=True)}}
    end = 0
    for name, array in whole.items():
        start, end = end, end + array.nbytes
        described[name] = {"dtype": _TYPES[array.dtype.str[1:]], "shape": array.shape, "data_offsets": (start, end)}
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for array in whole.values():
        yield array.reshape(-1).view(np.uint8).data


def _hashed(pieces: Iterable[bytes | memoryview], digest: "hashlib._Hash") -> Iterator[bytes | memoryview]:
    for piece in pieces:
        digest.update(piece)
        yield piece


_TYPES = {  # numpy's names of types, and those of safetensors
    "b1": "BOOL", "u1": "U8", "i1": "I8", "u2": "U16", "i2": "I16", "u4": "U32", "i4": "I32", "u8": "U64", "i8": "I64",
    "f2": "F16", "f4": "F32", "f8": "F64", "c8": "C64",
}  # fmt: skip
