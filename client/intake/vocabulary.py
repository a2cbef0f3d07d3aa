"""What customers call the columns of a planets' table, and how their units convert to the contract's."""

import re
from dataclasses import dataclass

from astrofed.client.data.contract import Unit, normalise_unit
from astrofed.client.tasks.planets_catalogue import UNITS
from astrofed.shared.models.planet_layout import INPUTS, TARGETS

TEXTS = ("pl_name", "hostname", "discoverymethod")
ERRORS = tuple(f"{name}err1" for name in TARGETS)
LIMITS = tuple(f"{name}lim" for name in (*INPUTS, *TARGETS))
NUMBERS = (*INPUTS, *TARGETS)

_SYNONYMS = {
    "pl_name": ("name", "planet", "planetname", "plname"),
    "hostname": ("host", "star", "starname", "hoststar"),
    "discoverymethod": ("method", "discovery", "detectionmethod"),
    "pl_orbper": ("period", "orbitalperiod", "per", "porb"),
    "pl_orbsmax": ("a", "sma", "semimajoraxis", "axis"),
    "pl_orbeccen": ("e", "ecc", "eccentricity"),
    "st_teff": ("teff", "startemperature", "stellartemperature", "effectivetemperature", "startemp"),
    "st_rad": ("starradius", "stellarradius", "rstar"),
    "st_mass": ("starmass", "stellarmass", "mstar"),
    "st_met": ("met", "feh", "metallicity"),
    "st_logg": ("logg", "surfacegravity"),
    "pl_eqt": ("teq", "eqt", "equilibriumtemperature", "planettemperature"),
    "pl_rade": ("radius", "planetradius", "rplanet", "rp"),
}
_ERROR = re.compile(r"(err1|err|error|sigma|unc|uncertainty)$")
_SUFFIXES = {
    "k": "K",
    "c": "degC",
    "days": "day",
    "day": "day",
    "d": "day",
    "hours": "hour",
    "years": "year",
    "au": "au",
    "km": "km",
    "rsun": "R_sun",
    "msun": "M_sun",
    "rearth": "R_earth",
    "rjup": "R_jup",
    "dex": "dex",
}
_ACCEPTED = {
    "K": {"degC": (1.0, 273.15), "celsius": (1.0, 273.15), "kelvin": (1.0, 0.0)},
    "day": {"days": (1.0, 0.0), "d": (1.0, 0.0), "hour": (1 / 24, 0.0), "h": (1 / 24, 0.0), "year": (365.25, 0.0)},
    "au": {"AU": (1.0, 0.0), "km": (1 / 1.495978707e8, 0.0), "m": (1 / 1.495978707e11, 0.0)},
    "R_sun": {"Rsun": (1.0, 0.0), "solRad": (1.0, 0.0), "km": (1 / 6.957e5, 0.0)},
    "M_sun": {"Msun": (1.0, 0.0), "solMass": (1.0, 0.0)},
    "R_earth": {"Rearth": (1.0, 0.0), "R_jup": (71492 / 6378.1, 0.0), "Rjup": (71492 / 6378.1, 0.0)},
    "dex": {"[dex]": (1.0, 0.0), "1": (1.0, 0.0)},
    "log10(cm s-2)": {"dex": (1.0, 0.0), "1": (1.0, 0.0)},
    "1": {"": (1.0, 0.0)},
}
PLAUSIBLE = {  # in the contract's units; what lies outside is no planet or star that is known
    "pl_orbper": (0.05, 1e6),
    "pl_orbsmax": (1e-3, 1e4),
    "pl_orbeccen": (0.0, 1.0),
    "st_teff": (500.0, 1e5),
    "st_rad": (0.005, 200.0),
    "st_mass": (0.005, 100.0),
    "st_met": (-3.0, 1.5),
    "st_logg": (0.0, 9.0),
    "pl_eqt": (10.0, 6000.0),
    "pl_rade": (0.1, 100.0),
}


@dataclass(frozen=True)
class Meaning:
    """What a customer's column is taken for."""

    name: str  # the contract's
    unit: str | None  # as the column's own name says, if it does


def unit_of(name: str) -> str:
    """Return the contract's unit of a numeric column; an error has its value's."""
    return "1" if name in LIMITS else UNITS[name.removesuffix("err1")]


def conversion(name: str, given: str) -> tuple[float, float] | None:
    """Return (factor, offset) to the contract's unit of a column, None if unknown; errors have no offset."""
    wanted = unit_of(name)
    found = Unit(wanted, {normalise_unit(k): v for k, v in _ACCEPTED.get(wanted, {}).items()}).conversion(given)
    return (found[0], 0.0) if found is not None and name in ERRORS else found


def units_of(name: str) -> list[str]:
    """Return the units that a column may be declared in."""
    return [unit_of(name), *_ACCEPTED.get(unit_of(name), {})]


def meaning(column: str) -> Meaning | None:
    """Return what a column's name says that it holds; None where it says nothing that the contract knows."""
    if column in (*TEXTS, *NUMBERS, *ERRORS, *LIMITS):
        return Meaning(column, None)
    words = [word for word in re.split(r"[^a-z0-9]+", column.lower()) if word]
    unit = _SUFFIXES.get(words[-1]) if len(words) > 1 else None
    bare = "".join(words[:-1] if unit is not None else words)
    error = _ERROR.search(bare)
    for candidate in (bare, "".join(words)):
        stem = _ERROR.sub("", candidate)
        for name, others in _SYNONYMS.items():
            if candidate in others or candidate == name.replace("_", ""):
                return Meaning(name, unit)
            if error and name in TARGETS and (stem in others or stem == name.replace("_", "")):
                return Meaning(f"{name}err1", unit)
    return None
