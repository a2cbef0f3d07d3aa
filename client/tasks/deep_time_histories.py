"""A history for the deep-time task: a table with a row a moment, read into dimensionless states at equal steps."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from astrofed.client.data.table import read_table
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.history_layout import QUANTITIES, scaled

TIME, TIME_UNIT = "time", "Gyr"
UNEVEN = 1e-3


class NoHistory(UserMistake):
    """A table that is no history: no known quantity, uneven times, values that can't be, or too few moments."""


@dataclass(frozen=True)
class History:
    """One world's states; those before `split` are for training."""

    states: Tensor  # [moment, quantity] float64, dimensionless, 0 where not given
    given: Tensor  # [quantity] float32
    times: Tensor  # [moment] float64, Gyr
    split: int
    unit: str
    fingerprint: str

    @property
    def step(self) -> float:
        """The time between two states, Gyr."""
        return float(self.times[1] - self.times[0])

    @property
    def ageing(self) -> Tensor:
        """Return [moment] ln of the ratio of the ages a step after each moment and at it, as the model takes it."""
        return torch.log1p(self.step / self.times).float()


def read_history(path: Path, stride: int, held_out: float) -> History:
    """Read every `stride`-th moment of a table, but not the first, which a run has not yet forgotten.

    Raises:
        NoHistory: it is none, or what is left is shorter than training and testing need.
        UserMistake: a table that can't be read, or a quantity in another unit.
    """
    table = read_table(path)
    if TIME not in table.units:
        raise NoHistory(f"{path}: no column {TIME!r}; a history has one, in {TIME_UNIT}")
    times = table.numbers(TIME, TIME_UNIT)[stride::stride]
    there = [quantity.name in table.units for quantity in QUANTITIES]
    if not any(there):
        raise NoHistory(f"{path}: none of the known quantities: {', '.join(q.name for q in QUANTITIES)}")
    if len(times) < 2 or np.ptp(np.diff(times)) > UNEVEN * abs(float(np.diff(times).mean())) or times[1] <= times[0]:
        raise NoHistory(f"{path}: times must grow in equal steps, and there must be more than {stride} of them")
    columns = []
    for quantity, present in zip(QUANTITIES, there, strict=True):
        values = table.numbers(quantity.name, quantity.unit)[stride::stride] if present else None
        if values is not None and not np.isfinite(values).all():
            raise NoHistory(f"{path}: {quantity.name} is absent at some times; give a value at each")
        if values is not None and (quantity.logarithmic or quantity.positive):
            lowest = float(values.min())
            if lowest < 0 or (quantity.logarithmic and lowest == 0):
                raise NoHistory(f"{path}: {quantity.name} is {lowest:g}; it can't be")
        columns.append(np.full(len(times), quantity.middle) if values is None else values)
    given = torch.tensor(there, dtype=torch.float32)
    split = round(len(times) * (1 - held_out))
    states = scaled(torch.from_numpy(np.stack(columns, axis=-1))) * given
    return History(states, given, torch.from_numpy(times.copy()), split, table.privacy_unit, table.fingerprint)
