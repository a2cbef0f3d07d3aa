"""What a run begins with, where that is not drawn from its seed and asked of its sites: weights and statistics."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from astrofed.server.checkpoint import digest_of
from astrofed.server.enrolment import Statistics

STATISTICS = "statistics.safetensors"


@dataclass(frozen=True)
class Beginning:
    """Another run's final weights, and the pooled statistics that they were trained with; None: the run's own."""

    model: Mapping[str, NDArray[Any]] | None = None
    statistics: Statistics | None = None

    def weights(self, drawn: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the run's first weights, in the network's order, where `drawn` are those from its seed."""
        return {name: array if self.model is None else self.model[name] for name, array in drawn.items()}

    @cached_property
    def sha256(self) -> str | None:
        """The digest of the weights, which the record's first line holds; None: they are drawn from the seed."""
        return None if self.model is None else digest_of(self.model)
