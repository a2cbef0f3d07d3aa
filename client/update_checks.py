"""What is checked of an update before it may leave: its arrays are the global model's, finite, and not too far from it.

What is looked at is the record that leaves, and not the model it was made from, which a task could still be changing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord

from astrofed.shared import records
from astrofed.shared.array_forms import view
from astrofed.shared.arrays import Expected, only_finite

_BLOCK = 32768  # numbers subtracted at once


@dataclass(frozen=True)
class Form:
    """What a model is made of: of each array its name, in the model's order, and what its bytes are to be."""

    arrays: Mapping[str, Expected]

    @classmethod
    def of(cls, record: ArrayRecord) -> "Form":
        """Return the form of a model's record."""
        return cls({name: Expected.like(view(array, name)) for name, array in record.items()})

    def fits(self, record: ArrayRecord) -> bool:
        """Say whether a record has these arrays, and no others."""
        held = records.items(record)
        return list(held) == list(self.arrays) and all([form.fits(held[name]) for name, form in self.arrays.items()])

    def is_finite(self, record: ArrayRecord) -> bool:
        """Say whether all numbers of a record that fits are finite."""
        held = records.items(record)
        return all([only_finite(form.flat(held[name])) for name, form in self.arrays.items()])


def update_norm(new: ArrayRecord, sent: ArrayRecord) -> float:
    """Return the Euclidean length, over all arrays, of a trained model minus the global model that was sent.

    In blocks that fit a core's cache, without a copy of either.
    """
    total, buffer = 0.0, np.empty(_BLOCK)
    for name, array in new.items():
        after, before = view(array, name).reshape(-1), view(sent[name], name).reshape(-1)
        for start in range(0, after.size, _BLOCK):
            part = buffer[: min(_BLOCK, after.size - start)]
            np.subtract(after[start : start + _BLOCK], before[start : start + _BLOCK], out=part, casting="same_kind")
            total += float(np.dot(part, part))
    return math.sqrt(total)
