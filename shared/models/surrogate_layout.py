"""What a multi-modal surrogate takes and gives: modalities, scalars and targets that the server and every site know.

A sample is a belt of latitude of one world in one month. The surrogate predicts the surface and the outgoing radiation
of that belt some months later, from whichever modalities are at hand: the atmosphere above the belt (a piece of the
datacube), the planet's constants, the belt's emission spectrum, and the world's global means over the last months.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor

from astrofed.shared.models.datacube_layout import VARIABLES
from astrofed.shared.models.layout import Layout, check_names, nearest
from astrofed.shared.plan import Name, Plan, PlanError

MODALITIES = ("cube", "scalars", "spectrum", "series")


@dataclass(frozen=True)
class Target:
    """A number that is predicted for a belt; learned as (value - centre) / width, both round public numbers."""

    name: str
    unit: str
    meaning: str
    centre: float
    width: float


TARGETS = (
    Target("ts", "K", "mean surface temperature", 276.0, 20.0),
    Target("olr", "W/m²", "outgoing longwave radiation at the top of the atmosphere", 220.0, 30.0),
    Target("temperate", "1", "share of the surface between water's freezing and boiling points", 0.7, 0.3),
    Target("icefree", "1", "share of the open sea that carries no ice", 0.8, 0.3),
)
"""The third and fourth are what habitability rests on, computed from the simulated fields, not scores."""
SCALARS = (
    "stellar flux",
    "carbon dioxide",
    "star's temperature",
    "rotation",
    "radius",
    "gravity",
    "mixed layer",
    "season, sine",
    "season, cosine",
    "land",
    "height",
)
"""Obliquity and eccentricity are not among them: the shipped worlds show no trace of what their runs asked for."""
SERIES = ("ts", "rlut", "rst", "hfls")
"""Global means that a time series holds, one value a month."""
PLACE = 3  # sine and cosine of latitude, and the lead in years


@dataclass(frozen=True)
class Observations:
    """What is known of a batch of samples; all dimensionless float32. What is absent holds zeros of any size."""

    place: Tensor  # [batch, 3]: which belt is asked about, and how far ahead; always known
    cube: Tensor  # [batch, variable + 1, lev, sector]: the atmosphere above the belt, and sigma
    scalars: Tensor  # [batch, scalar], see SCALARS
    spectrum: Tensor  # [batch, 2, wavelength]: brightness temperature, and the logarithm of the wavelength
    series: Tensor  # [batch, series, month], see SERIES, oldest first
    present: Tensor  # [batch, modality] bool, in the order of MODALITIES

    def __len__(self) -> int:
        return len(self.place)

    def at(self, rows: Tensor) -> Self:
        """Return the samples with these indices [row]."""
        return type(self)(*(tensor[rows] for tensor in self.tensors()))

    def seen(self, present: Tensor) -> Self:
        """Return the same samples with other modalities at hand [batch, modality]."""
        return replace(self, present=present)

    def only(self, names: Iterable[str]) -> Self:
        """Return the same samples with none but these modalities, where they were there."""
        kept = torch.tensor([name in set(names) for name in MODALITIES])
        return replace(self, present=self.present & kept)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, in the order of the fields."""
        return self.place, self.cube, self.scalars, self.spectrum, self.series, self.present


class SurrogateLayout(Layout):
    """The keys of a plan's [task] section that fix the shapes of the network and what is predicted."""

    for_tasks: ClassVar[str] = "the task 'surrogate'; task {} has no modalities"

    variables: Annotated[tuple[str, ...], Field(min_length=1)] = ("ta", "hus", "ua", "va")
    """Volume variables of the cube that the network sees; no surface field, which would be the answer."""
    months_in: Annotated[int, Field(ge=1, le=24)] = 3
    """How many months a time series holds."""
    lead: Annotated[int, Field(ge=0, le=24)] = 2
    """How many months after the last observation the targets lie; 0: the same month."""
    belts: Annotated[int, Field(ge=1, le=512)] = 16
    """Into how many belts of latitude a world is divided."""
    sectors: Annotated[int, Field(ge=1, le=512)] = 8
    """Into how many sectors of longitude a belt's atmosphere is divided."""
    modalities: dict[Name, tuple[str, ...]] = Field(default_factory=dict)
    """By participant: the modalities that it may use; a participant left out uses all that its data hold."""

    @field_validator("variables")
    @classmethod
    def _volume(cls, variables: tuple[str, ...]) -> tuple[str, ...]:
        volume = [name for name, variable in VARIABLES.items() if variable.levels]
        check_names(variables, volume, "is no variable with levels")
        return variables

    @field_validator("modalities")
    @classmethod
    def _known(cls, modalities: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for site, names in modalities.items():
            if not names:
                raise ValueError(f"{site!r} has none; leave the site out, or name at least one")
            check_names(names, MODALITIES, of=f" (of {site!r})")
        return modalities

    @classmethod
    def of_plan(cls, plan: Plan) -> Self:
        """Return the options of the plan's task, which hold the layout.

        Raises:
            PlanError: as of `Layout`; or a site is not in the plan.
        """
        layout = super().of_plan(plan)
        names = [participant.name for participant in plan.participants]
        for site in layout.modalities:
            if site not in names:
                raise PlanError(f"task.modalities: no participant is named {site!r}; {nearest(site, names)}")
        return layout
