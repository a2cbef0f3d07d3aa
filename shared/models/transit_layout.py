"""What a transit network takes and gives: names and fixed scales that the server and every site know.

Phase is counted in central durations, the time in which a point crosses the middle of the star's disc, which follows
from period and star; so transits of all periods look alike.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from astrofed.shared.models.surrogate_layout import Target

TARGETS = (
    Target("radius_ratio", "dex", "log10 of the planet's radius over the star's", -1.4, 0.3),
    Target("duration", "dex", "log10 of the hours from first to last contact", 0.5, 0.2),
)
BINS = 48
"""Of the folded light curve."""
REACH = 1.5
"""Central durations to each side of mid-transit that the folded light curve shows."""
CHANNELS = ("missing light over its error", "missing light over the box's depth", "error")
SCALARS = (
    *(f"{target.name} by a box" for target in TARGETS),
    "the box's depth over its error",
    "central duration",
    "period",
    "stellar density",
    "exposure over central duration",
    "transits",
    "error of a cadence",
)
"""The first are what a box says of each target, in its widths: a network corrects them."""


@dataclass(frozen=True)
class FoldedTransits:
    """A batch of folded light curves and what goes with them; all dimensionless float32."""

    series: Tensor  # [batch, channel, bin], see CHANNELS; 0 where no cadence lies in a bin
    scalars: Tensor  # [batch, scalar], see SCALARS

    def __len__(self) -> int:
        return len(self.series)

    def at(self, rows: Tensor) -> Self:
        """Return the samples with these indices [row]."""
        return type(self)(self.series[rows], self.scalars[rows])
