"""The constraints by name: what each needs, its residual on a state, the share that complies, and its penalty."""

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from astrofed.shared.errors import UserMistake
from astrofed.shared.physics import CONSTRAINTS, TOLERANCES
from astrofed.shared.physics.budget import ENERGY_FIELDS, WATER_FIELDS, energy_budget_residual, water_residual
from astrofed.shared.physics.energy import energy_residual
from astrofed.shared.physics.grid import Grid
from astrofed.shared.physics.hydrostatic import hydrostatic_residual
from astrofed.shared.physics.mass import column_continuity_residual, dry_mass_residual, mass_continuity_residual
from astrofed.shared.physics.thermo import ideal_gas_residual, saturation_residual, static_stability_residual
from astrofed.shared.physics.wind import geostrophic, thermal_wind_residual

NEEDS: Mapping[str, tuple[str, ...]] = {
    "hydrostatic": ("zg", "ta", "hus"),
    "mass-continuity": ("ua", "va", "ps"),  # with wap level by level, without it the column as a whole
    "thermal-wind": ("ta", "hus", "ua", "va", "ps"),
    "energy": ("rst", "rlut"),
    "dry-mass": ("ps", "hus"),
    "water": WATER_FIELDS,
    "energy-budget": ENERGY_FIELDS,
    "static-stability": ("ta",),
    "saturation": ("ta", "hus", "ps"),
    "ideal-gas": ("rho", "ta", "hus", "ps"),
}


class UnknownConstraint(UserMistake):
    """A name that is none of the physics constraints."""


@dataclass(frozen=True, eq=False)
class State:
    """A world's fields at some times, in SI units by CF short name, and what is known of the world besides.

    Volume fields are [..., lev, lat, lon], surface fields [..., lat, lon]; `flux` and `dry_mass` broadcast to [...].
    `before` holds the fields of the month before each, of the same shapes, `interval_s` seconds earlier.
    """

    fields: Mapping[str, Tensor]
    grid: Grid
    flux: Tensor | None = None  # W m-2, stellar flux at the planet
    dry_mass: Tensor | None = None  # Pa, global mean dry surface pressure at another time
    before: Mapping[str, Tensor] | None = None
    interval_s: float | None = None


@dataclass(frozen=True)
class NotEvaluable:
    """A constraint that says nothing about a state, and why."""

    constraint: str
    reason: str


@dataclass(frozen=True, eq=False)
class Residual:
    """A constraint's residual on a state: `values` are dimensionless, 0 where balanced, the rest broadcasts to them."""

    constraint: str
    values: Tensor
    area: Tensor  # share of the sphere, 1 where the value is global
    counted: Tensor  # boolean: where the constraint may be asked for

    @property
    def total_weight(self) -> Tensor:
        """The summed weights of all values, masked or not."""
        return self._weigh(torch.ones_like(self.counted))

    @property
    def counted_weight(self) -> Tensor:
        """The summed weights of the values that count."""
        return self._weigh(self.counted)

    @property
    def complying_weight(self) -> Tensor:
        """The summed weights of the values that count and are below the tolerance; NaN does not comply."""
        return self._weigh(self.counted & (self.values.abs() < TOLERANCES[self.constraint]))

    def penalty(self) -> Tensor:
        """Area-weighted mean of √(1 + e²) − 1 with e = max(|r| / tolerance − 1, 0), scalar; 0 where masked.

        Within the tolerance it is flat: no one is asked for less than the data's own noise. Just outside it is
        quadratic, far outside linear (Charbonnier et al. 1997), so a wild prediction pulls no harder than a bad one.
        """
        excess = (self.values.abs() / TOLERANCES[self.constraint] - 1).clamp(min=0)
        cost = torch.hypot(excess, torch.ones_like(excess)) - 1
        return (cost * self.area * self.counted).sum() / self.area.expand_as(cost).sum()

    def _weigh(self, where: Tensor) -> Tensor:
        """One order of summation for all three, so that full compliance is exactly 1."""
        return (self.area.double() * where.expand_as(self.values)).sum()


def evaluate(constraint: str, state: State) -> Residual | NotEvaluable:
    """Return a constraint's residual on a state, or why it can't be evaluated; a missing field is never taken as 0.

    Raises:
        UnknownConstraint: no constraint has that name.
    """
    missing = missing_fields(constraint, state.fields)
    if missing:
        return NotEvaluable(constraint, f"needs {', '.join(missing)}")
    return _EVALUATORS[constraint](state)


def missing_fields(constraint: str, fields: Collection[str]) -> tuple[str, ...]:
    """Return the fields that a constraint needs and that are not among `fields`.

    Raises:
        UnknownConstraint: no constraint has that name; the message says the nearest.
    """
    if constraint not in NEEDS:
        near = difflib.get_close_matches(constraint, CONSTRAINTS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(CONSTRAINTS)}"
        raise UnknownConstraint(f"no physics constraint {constraint!r}; {hint}")
    return tuple(name for name in NEEDS[constraint] if name not in fields)


def _hydrostatic(state: State) -> Residual:
    f = state.fields
    return _everywhere("hydrostatic", hydrostatic_residual(f["zg"], f["ta"], f["hus"], state.grid), state.grid.area)


def _mass_continuity(state: State) -> Residual:
    f, grid = state.fields, state.grid
    if "wap" in f:
        values = mass_continuity_residual(f["ua"], f["va"], f["wap"], f["ps"], grid)
    else:
        values = column_continuity_residual(f["ua"], f["va"], f["ps"], grid)
    return _everywhere("mass-continuity", values, grid.area)


def _thermal_wind(state: State) -> Residual:
    f, grid = state.fields, state.grid
    values = thermal_wind_residual(f["ta"], f["hus"], f["ua"], f["va"], f["ps"], grid)
    return Residual("thermal-wind", values, grid.area, geostrophic(f["ua"], f["va"], grid))


def _energy(state: State) -> Residual | NotEvaluable:
    if state.flux is None:
        return NotEvaluable("energy", "needs the stellar flux")
    values = energy_residual(state.fields["rst"], state.fields["rlut"], state.flux, state.grid)
    return _everywhere("energy", values, torch.ones_like(values))


def _dry_mass(state: State) -> Residual | NotEvaluable:
    if state.dry_mass is None:
        return NotEvaluable("dry-mass", "needs the dry mass at another time")
    values = dry_mass_residual(state.fields["ps"], state.fields["hus"], state.dry_mass, state.grid)
    return _everywhere("dry-mass", values, torch.ones_like(values))


def _water(state: State) -> Residual | NotEvaluable:
    earlier = _earlier("water", state)
    if isinstance(earlier, NotEvaluable):
        return earlier
    values = water_residual(state.fields, *earlier, state.grid)
    return _everywhere("water", values, torch.ones_like(values))


def _energy_budget(state: State) -> Residual | NotEvaluable:
    earlier = _earlier("energy-budget", state)
    if isinstance(earlier, NotEvaluable):
        return earlier
    if state.flux is None:
        return NotEvaluable("energy-budget", "needs the stellar flux")
    values = energy_budget_residual(state.fields, *earlier, state.flux, state.grid)
    return _everywhere("energy-budget", values, torch.ones_like(values))


def _earlier(constraint: str, state: State) -> tuple[Mapping[str, Tensor], float] | NotEvaluable:
    if state.before is None or state.interval_s is None or missing_fields(constraint, state.before):
        return NotEvaluable(constraint, "needs the month before")
    return state.before, state.interval_s


def _static_stability(state: State) -> Residual:
    return _everywhere("static-stability", static_stability_residual(state.fields["ta"], state.grid), state.grid.area)


def _saturation(state: State) -> Residual:
    f = state.fields
    return _everywhere("saturation", saturation_residual(f["ta"], f["hus"], f["ps"], state.grid), state.grid.area)


def _ideal_gas(state: State) -> Residual:
    f = state.fields
    values = ideal_gas_residual(f["rho"], f["ta"], f["hus"], f["ps"], state.grid)
    return _everywhere("ideal-gas", values, state.grid.area)


def _everywhere(constraint: str, values: Tensor, area: Tensor) -> Residual:
    return Residual(constraint, values, area, torch.ones_like(area, dtype=torch.bool))


_EVALUATORS: Mapping[str, Callable[[State], Residual | NotEvaluable]] = {
    "hydrostatic": _hydrostatic,
    "mass-continuity": _mass_continuity,
    "thermal-wind": _thermal_wind,
    "energy": _energy,
    "dry-mass": _dry_mass,
    "water": _water,
    "energy-budget": _energy_budget,
    "static-stability": _static_stability,
    "saturation": _saturation,
    "ideal-gas": _ideal_gas,
}
