"""A task: what a participant learns from its own data, and how well a model does on what it held out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import nn

from astrofed.client.site import Site, SiteSummary
from astrofed.shared.plan import Plan, Section

if TYPE_CHECKING:
    from astrofed.client.meta.episodes import FewShot

Statistics = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class TrainInstruction:
    """What the coordinator asks for in one round."""

    round: int  # from 1
    seed: int  # derived from the plan's seed, the round and the site's name
    proximal_mu: float = 0.0  # FedProx's penalty on the distance to the global model
    noise_turn: str = ""  # under which noise is drawn that sites share


@dataclass(frozen=True)
class TrainOutcome:
    """What one local training gives besides the changed model: finite numbers only."""

    num_examples: int
    metrics: dict[str, float] = field(default_factory=dict)  # "loss" at least


class Task(ABC):
    """One participant's side of a learning problem. Built once per site and plan, then asked every round.

    A task holds its site's data in memory after the first use. It never returns data: statistics, updates and metrics
    are all that leave, and the client app checks those.
    """

    class Options(Section):
        """The task's own keys in the plan's [task] section."""

    supports_privacy: ClassVar[bool] = False
    """Whether `train` honours the plan's [privacy] section; a plan that has one is refused for tasks that don't."""

    few_shot: "ClassVar[type[FewShot[Any]] | None]" = None
    """What gives this task's episodes, for plans of mode 'meta'; None: the task has none and such plans are refused."""

    def __init__(self, plan: Plan, options: BaseModel, site: Site) -> None:
        self.plan = plan
        self.site = site

    @abstractmethod
    def summary(self) -> SiteSummary:
        """Read the data and return what the site tells when it enrols.

        Raises:
            UserMistake: data missing, corrupt, in wrong units or dims, or too few samples.
        """

    def statistics(self) -> dict[str, NDArray[np.float64]]:
        """Return this site's statistics for standardisation, by key; none by default.

        A key's prefix says how the server pools it over the sites: "median:" (coordinate-wise median, which a minority
        of lying sites can't move at will) or "mean:". All sites return the same keys and shapes.
        """
        return {}

    @abstractmethod
    def train(self, model: nn.Module, statistics: Statistics, instruction: TrainInstruction) -> TrainOutcome:
        """Train `model` in place on the site's training samples for one round.

        `statistics` is what the server pooled, by key. All randomness comes from `instruction.seed`.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module, statistics: Statistics, *, with_baselines: bool) -> dict[str, float]:
        """Return metrics of `model` on the site's held-out samples; all finite; in physical units where it says so.

        Keys: "loss" (the headline number, dimensionless); others with slashes for structure: "rmse/ta",
        "rmse/ta/3" (level index), "physics/<constraint>/compliance" and "physics/<constraint>/tolerance" (a constraint
        that can't be evaluated is left out), and with `with_baselines` also "baseline/<name>/<metric>" on the same
        samples.
        """

    def evaluated_units(self, metric: str) -> int:
        """Return how many privacy units a metric of `evaluate` is of.

        1 where a task doesn't say: then metrics leave only where the site's policy allows those of a single unit.
        """
        return 1

    def unit_errors(self, model: nn.Module, statistics: Statistics) -> Mapping[str, NDArray[np.float64]]:
        """Return, by name, for metrics of `evaluate` that are root mean squares, [unit] mean squared errors.

        Each held-out privacy unit has one number, in the square of the metric's own unit, that says something of this
        unit alone. A site's policy can have noise hide each of them; metrics that are not here then don't leave.
        """
        return {}

    def showcase(self, model: nn.Module, statistics: Statistics) -> dict[str, Any]:
        """Return pictures' raw material for the report of a local simulation; it never leaves the machine."""
        return {}
