"""Who is asked in a round, and the file that only the server's operator may read about it.

Where participants are sampled, epsilon counts on it that nobody can tell who was asked; and whether a participant's
reply could be used says something of its data. So the record, which others see, names nobody, and says neither seconds
nor bytes of a round of training: all that stands in a file of mode 0600 beside it.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astrofed.shared.files import append_line, cannot_write
from astrofed.shared.plan import CentralPrivacy
from astrofed.shared.privacy.noise import Randomness
from astrofed.shared.record import Quarantine

OPERATORS = "operator.jsonl"


def asked(nodes: Sequence[int], section: CentralPrivacy, server_round: int, random: Randomness) -> list[int]:
    """Return whom to ask in a round (from 1): each with the plan's probability, or the cohort whose turn it is."""
    if section.cohorts is not None:
        turn = (server_round - 1) % section.cohorts
        return [node for index, node in enumerate(nodes) if index % section.cohorts == turn]
    return [
        node for node, drawn in zip(nodes, random.uniform(len(nodes)), strict=True) if drawn < section.sampling_rate
    ]


def for_operator(folder: Path, round_number: int, seconds: float, entry: dict[str, Any]) -> dict[str, Any]:
    """Write down what only the operator may know of a round; return what others may know of it.

    Raises:
        CannotWrite: the disk is full or the folder not writable.
    """
    own = {"round": round_number, "seconds": round(seconds, 4), "bytes": entry["bytes"], "accepted": entry["accepted"]}
    quarantined: tuple[Quarantine, ...] = entry["quarantined"]
    own["quarantined"] = [item.model_dump() for item in quarantined]
    path = folder / OPERATORS
    try:
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    except OSError as error:
        raise cannot_write(path, error) from error
    append_line(path, json.dumps(own).encode(), flush=False)
    return {**entry, "accepted": (), "weights": {}, "quarantined": (), "train_metrics": {}, "bytes": None}
