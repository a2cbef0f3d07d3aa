"""What stands where in a datacube network's tensors: the contract between datacube tasks and datacube networks.

State tensors are [batch, variable, climate_time, geological_time, lev, lat, lon]. Variables that have no levels
(surface pressure, fluxes) are repeated over lev on input and averaged over lev on output. Forcing tensors are
[batch, forcing, geological_time, lev, lat, lon]: what is known beforehand about the target months.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, field_validator

from astrofed.shared.models.layout import Layout, check_names


@dataclass(frozen=True)
class Variable:
    """A climate variable: CF/CMIP short name, unit, and how a network should see it.

    `power` is the exponent that makes its distribution even (specific humidity spans five decades: its fourth root is
    learned, which also keeps it positive). `offset` and `spread` are round numbers in the transformed unit that keep
    normal equations well conditioned; no result depends on them. `odd` says that the variable changes its sign when a
    world is mirrored at its equator.
    """

    name: str
    unit: str
    levels: bool
    offset: float
    spread: float
    power: float = 1.0
    odd: bool = False


VARIABLES = {
    v.name: v
    for v in (
        Variable("ta", "K", True, 250.0, 30.0),
        Variable("hus", "kg/kg", True, 0.2, 0.1, power=0.25),
        Variable("ua", "m/s", True, 8.0, 12.0),
        Variable("va", "m/s", True, 0.0, 4.0, odd=True),
        Variable("wap", "Pa/s", True, 0.0, 0.02),
        Variable("zg", "m", True, 1e4, 1e4),
        Variable("clw", "kg/kg", True, 0.05, 0.02, power=0.25),
        Variable("ps", "Pa", False, 9.6e4, 8e3),
        Variable("ts", "K", False, 276.0, 26.0),
        Variable("rst", "W/m²", False, 180.0, 110.0),
        Variable("rlut", "W/m²", False, -210.0, 40.0),
        Variable("rss", "W/m²", False, 130.0, 90.0),
        Variable("rls", "W/m²", False, -54.0, 24.0),
        Variable("hfss", "W/m²", False, -12.0, 24.0),
        Variable("hfls", "W/m²", False, -64.0, 56.0),
        Variable("pr", "kg m-2 s-1", False, 0.065, 0.02, power=0.25),
        Variable("evap", "kg m-2 s-1", False, -2.5e-5, 2.2e-5),
        Variable("alb", "1", False, 0.3, 0.3),
        Variable("sic", "1", False, 0.2, 0.4),
        Variable("clt", "1", False, 0.6, 0.2),
        Variable("prw", "kg/m²", False, 2.0, 0.5, power=0.25),
    )
}

# What the forcing tensor holds first; two channels of the season for each target month follow.
FIXED_FORCING = (
    "land fraction",
    "surface geopotential",
    "sine of latitude",
    "cosine of latitude",
    "sigma",
    "upper troposphere",
    "boundary layer",
    "Coriolis parameter",
    "beta parameter",
    "gravity",
    "stellar flux",
    "carbon dioxide",
)
PLANET = ("Coriolis parameter", "beta parameter", "gravity", "stellar flux", "carbon dioxide")
"""Forcing from whose means over the grid a planet is told; of the Coriolis parameter, the mean of its size."""
SIGMA = FIXED_FORCING.index("sigma")
GEOPOTENTIAL = FIXED_FORCING.index("surface geopotential")
GEOPOTENTIAL_UNIT = 1e4  # m2 s-2
# Coordinates of the grid itself: they stay where they are when a world is mirrored.
COORDINATES = tuple(FIXED_FORCING.index(name) for name in ("sine of latitude", "Coriolis parameter"))


class DatacubeLayout(Layout):
    """The keys of a plan's [task] section that fix the shapes of the network."""

    for_tasks: ClassVar[str] = "tasks on datacubes; task {} is none"

    variables: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "ta",
        "hus",
        "ua",
        "va",
        "wap",
        "zg",
        "ps",
        "ts",
        "rst",
        "rlut",
    )
    months_in: Annotated[int, Field(ge=1)] = 2
    months_out: Annotated[int, Field(ge=1)] = 1
    season: Literal["absorbed sunlight", "none"] = "absorbed sunlight"
    """What the two channels of the season hold: a sinusoid fitted to the input months' absorbed sunlight, or zeros."""

    ages: bool = False
    """Whether the geological time of each epoch, in Gyr before present, is the last of the forcing's channels."""

    @field_validator("variables")
    @classmethod
    def _known(cls, variables: tuple[str, ...]) -> tuple[str, ...]:
        check_names(variables, VARIABLES)
        return variables

    @property
    def forcings(self) -> int:
        """How many forcing channels there are."""
        return len(FIXED_FORCING) + 2 * self.months_out + self.ages

    def planet(self, forcing: torch.Tensor) -> torch.Tensor:
        """Return a planet's numbers [batch, condition, geological_time], dimensionless, from the forcing tensor."""
        chosen = forcing[:, [FIXED_FORCING.index(name) for name in PLANET]]
        return torch.cat((chosen[:, :1].abs(), chosen[:, 1:]), dim=1).mean(dim=(-3, -2, -1))

    def level_means(self, fields: torch.Tensor) -> torch.Tensor:
        """Replace variables that have no levels by their mean over lev, in [..., variable, *, *, lev, lat, lon]."""
        flat = torch.tensor([not VARIABLES[name].levels for name in self.variables], device=fields.device)
        return torch.where(flat[:, None, None, None, None, None], fields.mean(dim=-3, keepdim=True), fields)

    def mirror_signs(self) -> torch.Tensor:
        """Return [variable]: −1 for variables that change sign when a world is mirrored at its equator, else 1."""
        return torch.tensor([-1.0 if VARIABLES[name].odd else 1.0 for name in self.variables])
