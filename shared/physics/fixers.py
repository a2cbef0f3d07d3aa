"""Fixers: corrections of one field, the carrier, after which a constraint holds; on SI fields, by name.

"mass" scales surface pressure so that the dry mass is the known one. "hydrostatic" moves heights and temperatures to
the nearest balanced ones. "radiation" shifts the outgoing longwave evenly until the net flux at the top is one that
months of the shipped worlds have; roll-outs would drift away from it. "energy" warms or cools the air evenly and
"water" scales precipitation until the month's budget closes to within the constraint's tolerance: the GCM's own close
no better, and nobody is asked for more. All are differentiable; none makes up a field that is missing. After NCAR's
CREDIT (Schreck et al. 2025) and NVIDIA's makani.
"""

import difflib
from collections import ChainMap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from astrofed.shared.errors import UserMistake
from astrofed.shared.physics import TOLERANCES
from astrofed.shared.physics.budget import energy_budget_residual, water_residual
from astrofed.shared.physics.constraints import NEEDS, NotEvaluable, State
from astrofed.shared.physics.energy import energy_residual
from astrofed.shared.physics.grid import Grid, step
from astrofed.shared.physics.hydrostatic import virtual_temperature
from astrofed.shared.physics.mass import dry_mass

FIXERS = ("mass", "hydrostatic", "radiation", "energy", "water")
"""In the order in which they are applied: each leaves alone what those before it have mended."""
_CONSTRAINT = {
    "mass": "dry-mass",
    "hydrostatic": "hydrostatic",
    "radiation": "energy",
    "energy": "energy-budget",
    "water": "water",
}
CARRIERS: Mapping[str, tuple[str, ...]] = {
    "mass": ("ps",),
    "hydrostatic": ("zg", "ta"),
    "radiation": ("rlut",),
    "energy": ("ta", "zg"),
    "water": ("pr",),
}
MARGIN = 0.9  # of the tolerance: what rounding does afterwards stays within it
LARGEST_NET_FLUX = 0.08  # over a quarter of the stellar flux; the shipped worlds' own months reach 0.078
TYPICAL_CHANGE = {"zg": 30.0, "ta": 2.0}  # m and K, of a month: a change of one costs as much as one of the other


class UnknownFixer(UserMistake):
    """A name that is none of the fixers."""


def fixer_needs(name: str, fields: Collection[str]) -> tuple[str, ...]:
    """Return the fields that a fixer needs and that are not among `fields`.

    Raises:
        UnknownFixer: no fixer has that name; the message says the nearest.
    """
    if name not in FIXERS:
        near = difflib.get_close_matches(name, FIXERS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(FIXERS)}"
        raise UnknownFixer(f"no physics fixer {name!r}; {hint}")
    return tuple(field for field in NEEDS[_CONSTRAINT[name]] if field not in fields)


def fix(
    state: State, fixers: Sequence[str], spreads: Mapping[str, Tensor] | None = None
) -> tuple[State, tuple[NotEvaluable, ...]]:
    """Return the state with its carriers corrected, and the fixers that had nothing to go by.

    Args:
        state: SI fields [..., lev, lat, lon] and [..., lat, lon]; `before` is taken as it is.
        fixers: names; they are applied in the order of FIXERS.
        spreads: what counts as one unit of change for the hydrostatic fixer, of zg (m) and ta (K), [lev] each; by
            default TYPICAL_CHANGE.

    Raises:
        UnknownFixer: a name is none of FIXERS.
    """
    missed = []
    for name in sorted(fixers, key=lambda each: FIXERS.index(each) if each in FIXERS else -1):
        missing = fixer_needs(name, state.fields)
        reason = f"needs {', '.join(missing)}" if missing else _unknown(name, state)
        if reason:
            missed.append(NotEvaluable(name, reason))
            continue
        fields = ChainMap(_corrected(name, state, spreads), state.fields)  # type: ignore[arg-type]
        state = replace(state, fields=fields)
    return state, tuple(missed)


def _unknown(name: str, state: State) -> str:
    """What a fixer has to know besides the fields and doesn't, or nothing."""
    if name == "mass" and state.dry_mass is None:
        return "needs the dry mass at another time"
    if name == "radiation" and state.flux is None:
        return "needs the stellar flux"
    if name in ("energy", "water"):
        needed = NEEDS[_CONSTRAINT[name]]
        if state.before is None or state.interval_s is None or not set(needed) <= set(state.before):
            return "needs the month before"
        if name == "energy" and state.flux is None:
            return "needs the stellar flux"
    return ""


def _corrected(name: str, state: State, spreads: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    fields, grid, before, interval = state.fields, state.grid, state.before, state.interval_s
    if name == "mass":
        assert state.dry_mass is not None
        return {"ps": fix_mass(fields["ps"], fields["hus"], state.dry_mass, grid)}
    if name == "hydrostatic":
        zg, ta = fix_hydrostatic(fields["zg"], fields["ta"], fields["hus"], grid, spreads or {})
        return {"zg": zg, "ta": ta}
    if name == "radiation":
        assert state.flux is not None
        return {"rlut": fix_radiation(fields["rst"], fields["rlut"], state.flux, grid)}
    assert before is not None and interval is not None
    if name == "water":
        return {"pr": fix_water(fields, before, interval, grid)}
    assert state.flux is not None
    return fix_energy(fields, before, interval, state.flux, grid)


def fix_mass(ps: Tensor, hus: Tensor, known: Tensor, grid: Grid) -> Tensor:
    """Return ps (Pa) [..., lat, lon] scaled so that the global dry mass is `known` (Pa) [...].

    The slopes of ln ps, which the winds feel, stay as they are.
    """
    return ps * (known / dry_mass(ps, hus, grid))[..., None, None]


def fix_hydrostatic(
    zg: Tensor, ta: Tensor, hus: Tensor, grid: Grid, spreads: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the zg (m) and ta (K) [..., lev, lat, lon] in hydrostatic balance that are nearest to those given.

    Nearest: the least sum over the column of squared changes of zg and of Tv, each in its own spread. With x the two
    columns and A x = 0 the balance (linear in Φ and Tv), x − W Aᵀ (A W Aᵀ)⁻¹ A x. hus is kept.
    """
    levels = zg.shape[-3]
    project = _projector(grid, levels, spreads, zg.dtype)
    factor = virtual_temperature(torch.ones_like(ta), hus, grid.planet)
    column = torch.cat((zg, ta * factor), dim=-3)
    change = torch.einsum("ij,...jyx->...iyx", project, column)
    return zg + change[..., :levels, :, :], ta + change[..., levels:, :, :] / factor


def fix_radiation(rst: Tensor, rlut: Tensor, flux: Tensor, grid: Grid) -> Tensor:
    """Return rlut (W/m², positive downward) [..., lat, lon], shifted evenly until |N| ≤ LARGEST_NET_FLUX · S / 4.

    N is the global mean of rst + rlut (W/m²), S the stellar flux `flux` (W/m²) [...].
    """
    net = energy_residual(rst, rlut, flux, grid)
    excess = net - net.clamp(-LARGEST_NET_FLUX, LARGEST_NET_FLUX)
    return rlut - (excess * flux / 4)[..., None, None]


def fix_energy(
    fields: Mapping[str, Tensor], before: Mapping[str, Tensor], interval_s: float, flux: Tensor, grid: Grid
) -> dict[str, Tensor]:
    """Return ta (K), warmed or cooled evenly until the month's energy budget closes to the tolerance, and zg with it.

    zg is moved by what the warmer air's thickness adds, so that hydrostatic balance stays what it was.
    """
    off = energy_budget_residual(fields, before, interval_s, flux, grid)
    excess = off - _bounded(off, "energy-budget")
    planet = grid.planet
    capacity = planet.heat_capacity_j_kg_k * grid.global_mean(fields["ps"]) / planet.gravity_m_s2
    warming = (-excess * flux / 4 * interval_s / capacity)[..., None, None, None]
    fixed = {"ta": fields["ta"] + warming}
    if "zg" in fields:
        fixed["zg"] = fields["zg"] + _thickening(warming, fields["hus"], grid)
    return fixed


def fix_water(fields: Mapping[str, Tensor], before: Mapping[str, Tensor], interval_s: float, grid: Grid) -> Tensor:
    """Return pr (kg m-2 s-1) [..., lat, lon], scaled until the month's water budget closes to the tolerance.

    More evaporation than can be wrung out of it is left as it is: rain never turns negative.
    """
    off = water_residual(fields, before, interval_s, grid)
    excess = (off - _bounded(off, "water")) * grid.global_mean(before["pr"])
    rain = grid.global_mean(fields["pr"])
    return fields["pr"] * (1 - 2 * excess / rain).clamp(min=0)[..., None, None]


def _bounded(residual: Tensor, constraint: str) -> Tensor:
    limit = MARGIN * TOLERANCES[constraint]
    return residual.clamp(-limit, limit)


def _thickening(warming: Tensor, hus: Tensor, grid: Grid) -> Tensor:
    """How far an even warming lifts each level [..., lev, lat, lon], m: −R/g ∫ δTv d ln p from the surface upwards."""
    change = virtual_temperature(warming.expand_as(hus), hus, grid.planet)
    downward = bool(grid.lev[-1] > grid.lev[0])
    if downward:
        change = change.flip(-3)
    log_sigma = (grid.lev.flip(0) if downward else grid.lev).log()
    first = -change[..., :1, :, :] * log_sigma[:1]
    above = -0.5 * (change[..., 1:, :, :] + change[..., :-1, :, :]) * step(log_sigma)
    lift = torch.cat((first, above), dim=-3).cumsum(-3) * (grid.planet.gas_constant / grid.planet.gravity_m_s2)
    return lift.flip(-3) if downward else lift


def _projector(grid: Grid, levels: int, spreads: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The matrix [2 lev, 2 lev] whose product with (zg, Tv) is the change that balances them."""
    planet = grid.planet
    log_step = grid.log_step.flatten().double()
    device = log_step.device
    rows = torch.arange(levels - 1, device=device)
    balance = torch.zeros(levels - 1, 2 * levels, dtype=torch.float64, device=device)
    balance[rows, rows], balance[rows, rows + 1] = -planet.gravity_m_s2, planet.gravity_m_s2
    balance[rows, levels + rows] = balance[rows, levels + rows + 1] = 0.5 * planet.gas_constant * log_step
    usual = {name: torch.tensor(TYPICAL_CHANGE[name], device=device) for name in ("zg", "ta")}
    sizes = [spreads.get(name, usual[name]).double().expand(levels) for name in ("zg", "ta")]
    weighted = torch.cat(sizes).square()[:, None] * balance.T
    change: Tensor = -weighted @ torch.linalg.solve(balance @ weighted, balance)
    return change.to(dtype)
