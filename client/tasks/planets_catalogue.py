"""The catalogue's planets as numbers to learn from: which columns are inputs and targets, which rows count, and why.

Targets are the equilibrium temperature (`pl_eqt`) and the radius (`pl_rade`). A value is a target only where it says
something about the planet itself:
- not where it is a limit, and not where it has no error: what the archive estimates (radii from a mass–radius relation
  above all) comes without one, and the table can't tell these from the few that were published so;
- no temperature of a directly imaged planet: that one glows by itself, what is listed is its effective temperature;
- no temperature where the star's temperature and radius or the orbit are unknown: nothing then says how much light
  falls on the planet, and the formula that the surrogate is compared with can't be evaluated either.
Planets with neither target are left out.

Inputs are the orbit (period, semi-major axis, eccentricity) and the star (temperature, radius, mass, metallicity,
surface gravity). Left out because they are made from a target or with it: `pl_insol` (it is the temperature in other
units), `pl_bmasse` (half of the masses come from a mass–radius relation), the targets' errors. Left out because it is
neither star nor orbit: the distance, and how and where the planet was found. Left out because it would carry one planet
into another's row, which no per-planet privacy could bound: `sy_pnum`. An absent semi-major axis follows from Kepler's
third law; other absent inputs, and inputs that are only limits, are 0 with a flag of their own.

Everything is put on fixed scales around the Sun and common planets, not on the site's own means: statistics of private
data would be releases. All planets of a star lie on one side of the split, which a hash of the star's name decides.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astrofed.client.data.mistakes import DataMistake
from astrofed.client.data.table import Table, read_table
from astrofed.shared.models.planet_layout import INPUTS, TARGETS
from astrofed.shared.seeds import derive_seed

SOLAR_RADIUS_AU = 6.957e8 / 1.495978707e11  # nominal values of IAU 2015 resolution B3 and IAU 2012 resolution B2
SOLAR_TEFF_K = 5772.0
SOLAR_LOGG = 4.438  # log10(cm s-2)
YEAR_DAYS = 365.25636  # sidereal
LARGEST_FEATURE = 5.0
UNITS = {
    "pl_orbper": "day",
    "pl_orbsmax": "au",
    "pl_orbeccen": "1",
    "st_teff": "K",
    "st_rad": "R_sun",
    "st_mass": "M_sun",
    "st_met": "dex",
    "st_logg": "log10(cm s-2)",
    "pl_eqt": "K",
    "pl_rade": "R_earth",
}
LINEAR = ("pl_orbeccen", "st_met", "st_logg")  # all others are taken as log10
SCALES = {  # centre and width, of the logarithm where one is taken
    "pl_orbper": (1.0, 1.0),
    "pl_orbsmax": (-1.0, 0.7),
    "pl_orbeccen": (0.0, 0.3),
    "st_teff": (float(np.log10(SOLAR_TEFF_K)), 0.1),
    "st_rad": (0.0, 0.3),
    "st_mass": (0.0, 0.3),
    "st_met": (0.0, 0.2),
    "st_logg": (SOLAR_LOGG, 0.4),
}
TARGET_CENTRE = np.log10([800.0, 3.0])  # K, R_earth
TARGET_WIDTH = np.array([0.25, 0.4])  # dex


class PlanetTwice(DataMistake):
    """A planet stands in more than one row where it is the unit of privacy."""


class PlanetUnphysical(DataMistake):
    """A column of the catalogue holds values that no star or planet has."""


@dataclass(frozen=True)
class Planets:
    """Planets with at least one target. Rows agree over all fields."""

    features: Tensor  # [planet, feature] float32, dimensionless
    targets: Tensor  # [planet, target] float32, (log10 value - centre) / width; 0 where there is none
    given: Tensor  # [planet, target] float32: 1 where there is a target, else 0
    zero_albedo: Tensor  # [planet] float64: log10 of the zero-albedo equilibrium temperature in K, or NaN
    unit: NDArray[np.str_]  # [planet]: the name of the privacy unit it belongs to
    star: NDArray[np.str_]  # [planet]: the name of its star

    def __len__(self) -> int:
        return len(self.features)

    @property
    def num_units(self) -> int:
        """How many privacy units the planets belong to."""
        return len(np.unique(self.unit))

    def where(self, rows: NDArray[np.bool_]) -> "Planets":
        """Return the planets of those rows."""
        kept = torch.from_numpy(rows)
        return Planets(
            self.features[kept],
            self.targets[kept],
            self.given[kept],
            self.zero_albedo[kept],
            self.unit[rows],
            self.star[rows],
        )


@dataclass(frozen=True)
class Catalogue:
    """One site's planets, split."""

    table: Table
    training: Planets
    held_out: Planets
    rows_held_out: int  # planets on the held-out side, those without a target included


def read_catalogue(path: Path, share: float) -> Catalogue:
    """Read a table of planets and hold out `share` of the stars (1: all of them) with their planets.

    Raises:
        DataMistake: the file is missing or corrupt, columns or units are wrong, a planet stands there twice.
    """
    table = read_table(path)  # whole, so that its fingerprint is the dataset's
    try:
        return _catalogue(table, share)
    except DataMistake as mistake:
        raise type(mistake)(f"{path}: {mistake}") from mistake


def _catalogue(table: Table, share: float) -> Catalogue:
    names, counts = np.unique(table.text(table.privacy_key), return_counts=True)
    twice = names[counts > 1].tolist()
    if twice and table.privacy_unit == "planet":  # a star, a programme or a customer has several planets
        raise PlanetTwice(
            f"planet {twice[0]!r} stands in more than one row ({len(twice)} such); keep one row for each, or say in "
            "the contract which larger unit the rows belong to"
        )
    values = {name: _known(table, name) for name in INPUTS}
    zero_albedo = np.log10(equilibrium_temperature(values["st_teff"], values["st_rad"], values["pl_orbsmax"]))
    given = np.stack([_measured(table, name) for name in TARGETS], axis=1)
    given[:, 0] &= (table.text("discoverymethod") != "Imaging") & np.isfinite(zero_albedo)
    logs = np.stack([np.log10(_positive(table, name)) for name in TARGETS], axis=1)
    planets = Planets(
        features=torch.from_numpy(_features(values)),
        targets=torch.from_numpy(np.where(given, (logs - TARGET_CENTRE) / TARGET_WIDTH, 0.0).astype(np.float32)),
        given=torch.from_numpy(given.astype(np.float32)),
        zero_albedo=torch.from_numpy(zero_albedo),
        unit=table.text(table.privacy_key),
        star=table.text("hostname"),
    )
    hidden, some = held_out(table.text("hostname"), share), given.any(axis=1)
    return Catalogue(table, planets.where(some & ~hidden), planets.where(some & hidden), int(hidden.sum()))


def held_out(stars: NDArray[np.str_], share: float) -> NDArray[np.bool_]:
    """Say [row] which planets are held out: each star's side depends on its own name and on nothing else."""
    sides = {star: derive_seed(0, "held out", star) < share * 2.0**63 for star in set(stars.tolist())}
    return np.array([sides[star] for star in stars.tolist()], dtype=np.bool_)


def equilibrium_temperature(
    teff_k: NDArray[np.float64], radius_rsun: NDArray[np.float64], axis_au: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return T = Teff·√(R/2a) in K: of a planet that reflects nothing and spreads its heat over its whole surface."""
    return np.asarray(teff_k * np.sqrt(radius_rsun * SOLAR_RADIUS_AU / (2 * axis_au)))


def kepler_axis(period_days: NDArray[np.float64], mass_msun: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the semi-major axis in au by Kepler's third law, the planet's mass neglected."""
    return np.asarray(np.cbrt(mass_msun * (period_days / YEAR_DAYS) ** 2))


def _known(table: Table, name: str) -> NDArray[np.float64]:
    """[row]: an input, NaN where it is absent or only a limit."""
    raw = table.numbers(name, UNITS[name]) if name in LINEAR else _positive(table, name)
    values = np.where(_limit(table, name), np.nan, raw)
    if name == "pl_orbsmax":
        by_law = kepler_axis(_known(table, "pl_orbper"), _known(table, "st_mass"))
        values = np.where(np.isnan(values), by_law, values)
    return values


def _positive(table: Table, name: str) -> NDArray[np.float64]:
    values = table.numbers(name, UNITS[name])
    wrong = np.flatnonzero((values <= 0) | np.isinf(values))
    if len(wrong):
        raise PlanetUnphysical(
            f"column {name!r} must hold positive numbers in {UNITS[name]}; {len(wrong)} rows don't (the first "
            f"is row {wrong[0] + 1}): leave out what is not known"
        )
    return values


def _measured(table: Table, name: str) -> NDArray[np.bool_]:
    error = table.numbers(f"{name}err1", UNITS[name])
    with np.errstate(invalid="ignore"):
        return np.isfinite(table.numbers(name, UNITS[name])) & (error > 0) & ~_limit(table, name)


def _limit(table: Table, name: str) -> NDArray[np.bool_]:
    flag = table.numbers(f"{name}lim", "1")
    return np.asarray(np.isfinite(flag) & (flag != 0))


def _features(values: dict[str, NDArray[np.float64]]) -> NDArray[np.float32]:
    """[row, feature]: all inputs on their scales, then for each whether it is missing."""
    columns = []
    for name in INPUTS:
        centre, width = SCALES[name]
        raw = values[name] if name in LINEAR else np.log10(values[name])
        columns.append((raw - centre) / width)
    scaled = np.stack(columns, axis=1)
    missing = ~np.isfinite(scaled)
    bounded = np.clip(np.where(missing, 0.0, scaled), -LARGEST_FEATURE, LARGEST_FEATURE)
    return np.concatenate([bounded, missing], axis=1).astype(np.float32)
