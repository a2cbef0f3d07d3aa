"""The contract of a climate cube: variable names (CF/CMIP), dimensions, SI units, and the units that convert to them.

Fluxes are positive downward, as the GCM writes them: `rlut`, `rls`, `hfss` and `hfls` are negative where the planet
or its surface loses heat, and `evap` is negative where water leaves the surface.
"""

from dataclasses import dataclass

from astrofed.client.data.mistakes import WrongUnits

VOLUME = ("geological_time", "climate_time", "lev", "lat", "lon")
SURFACE = ("geological_time", "climate_time", "lat", "lon")
COORDINATES = VOLUME


@dataclass(frozen=True)
class Unit:
    """An SI unit and what converts to it: SI value = factor · value + offset."""

    name: str
    accepted: dict[str, tuple[float, float]]

    def conversion(self, given: str) -> tuple[float, float] | None:
        """Return (factor, offset) from the unit `given`, or None where it is not known or of another kind."""
        if normalise_unit(given) == normalise_unit(self.name):
            return 1.0, 0.0
        return self.accepted.get(normalise_unit(given))


def normalise_unit(text: str) -> str:
    """Return a unit in exponent notation: "kg/kg" and "kg kg^-1" become "kg kg-1", "m/s" becomes "m s-1"."""
    first, *rest = text.strip().replace("**", "").replace("^", "").replace("²", "2").split("/")
    parts = [*first.split()]
    for divisor in rest:
        for part in divisor.split():
            base = part.rstrip("0123456789")
            parts.append(f"{base}-{part[len(base) :] or '1'}")
    return " ".join(parts)


KELVIN = Unit("K", {"degC": (1.0, 273.15), "celsius": (1.0, 273.15), "Celsius": (1.0, 273.15)})
SPEED = Unit("m s-1", {"km h-1": (1 / 3.6, 0.0)})
OMEGA = Unit("Pa s-1", {"hPa s-1": (100.0, 0.0), "Pa day-1": (1 / 86400, 0.0)})
MASS_FRACTION = Unit("kg kg-1", {"1": (1.0, 0.0), "g kg-1": (1e-3, 0.0)})
PRESSURE = Unit(
    "Pa", {"hPa": (100.0, 0.0), "mbar": (100.0, 0.0), "millibar": (100.0, 0.0), "kPa": (1e3, 0.0), "bar": (1e5, 0.0)}
)
LENGTH = Unit("m", {"km": (1e3, 0.0)})
GEOPOTENTIAL = Unit("m2 s-2", {"J kg-1": (1.0, 0.0)})
FRACTION = Unit("1", {"%": (0.01, 0.0), "percent": (0.01, 0.0)})
HEAT_FLUX = Unit("W m-2", {})
WATER_FLUX = Unit(
    "kg m-2 s-1",  # depth rates are of liquid water, 1000 kg m-3
    {"m s-1": (1e3, 0.0), "mm s-1": (1.0, 0.0), "mm day-1": (1 / 86400, 0.0), "kg m-2 day-1": (1 / 86400, 0.0)},
)
WATER_COLUMN = Unit("kg m-2", {"mm": (1.0, 0.0)})
AGE = Unit("Gyr ago", {"Gyr": (1.0, 0.0), "Ga": (1.0, 0.0), "Myr ago": (1e-3, 0.0), "Ma": (1e-3, 0.0)})
MONTH = Unit("month", {"months": (1.0, 0.0)})
NORTH = Unit("degrees_north", {"degree_north": (1.0, 0.0), "degrees": (1.0, 0.0)})
EAST = Unit("degrees_east", {"degree_east": (1.0, 0.0), "degrees": (1.0, 0.0)})


@dataclass(frozen=True)
class Variable:
    """One variable of the contract: CF/CMIP short name, SI unit, standard name, dimensions."""

    name: str
    unit: Unit
    standard_name: str
    dims: tuple[str, ...]
    required: bool = False
    positive: bool = False  # every value is above 0


_FIELDS = (
    Variable("ta", KELVIN, "air_temperature", VOLUME, required=True, positive=True),
    Variable("ua", SPEED, "eastward_wind", VOLUME),
    Variable("va", SPEED, "northward_wind", VOLUME),
    Variable("wap", OMEGA, "lagrangian_tendency_of_air_pressure", VOLUME),
    Variable("hus", MASS_FRACTION, "specific_humidity", VOLUME),
    Variable("clw", MASS_FRACTION, "cloud_liquid_water_mass_fraction", VOLUME),
    Variable("zg", LENGTH, "geopotential_height", VOLUME),
    Variable("ps", PRESSURE, "surface_air_pressure", SURFACE, required=True, positive=True),
    Variable("ts", KELVIN, "surface_temperature", SURFACE, positive=True),
    Variable("phis", GEOPOTENTIAL, "surface_geopotential", SURFACE),
    Variable("lsm", FRACTION, "land_binary_mask", SURFACE),
    Variable("alb", FRACTION, "surface_albedo", SURFACE),
    Variable("sic", FRACTION, "sea_ice_area_fraction", SURFACE),
    Variable("clt", FRACTION, "cloud_area_fraction", SURFACE),
    Variable("rst", HEAT_FLUX, "toa_net_downward_shortwave_flux", SURFACE),
    Variable("rlut", HEAT_FLUX, "toa_net_downward_longwave_flux", SURFACE),
    Variable("rss", HEAT_FLUX, "surface_net_downward_shortwave_flux", SURFACE),
    Variable("rls", HEAT_FLUX, "surface_net_downward_longwave_flux", SURFACE),
    Variable("hfss", HEAT_FLUX, "surface_downward_sensible_heat_flux", SURFACE),
    Variable("hfls", HEAT_FLUX, "surface_downward_latent_heat_flux", SURFACE),
    Variable("pr", WATER_FLUX, "precipitation_flux", SURFACE),
    Variable("evap", WATER_FLUX, "downward_water_evaporation_flux", SURFACE),
    Variable("prw", WATER_COLUMN, "atmosphere_mass_content_of_water_vapor", SURFACE),
)
FIELDS = {variable.name: variable for variable in _FIELDS}

_AXES = (
    Variable("geological_time", AGE, "age_before_present", ("geological_time",)),
    Variable("climate_time", MONTH, "month_of_the_simulated_year", ("climate_time",)),
    Variable("lev", FRACTION, "atmosphere_sigma_coordinate", ("lev",)),
    Variable("lat", NORTH, "latitude", ("lat",)),
    Variable("lon", EAST, "longitude", ("lon",)),
    Variable("flux", HEAT_FLUX, "stellar_flux_at_the_planet", ("geological_time",), positive=True),
    Variable("pco2", PRESSURE, "surface_partial_pressure_of_carbon_dioxide", ("geological_time",)),
)
AXES = {variable.name: variable for variable in _AXES}


def conversion(variable: Variable, given: object, where: str) -> tuple[float, float]:
    """Return (factor, offset) to the SI unit of `variable` from the unit `given` that `where` declares.

    Raises:
        WrongUnits: no unit is declared, or one of another kind.
    """
    found = variable.unit.conversion(given) if isinstance(given, str) else None
    if found is None:
        units = ", ".join([variable.unit.name, *variable.unit.accepted])
        said = f"declares the unit {given!r}" if given is not None else "declares no unit"
        raise WrongUnits(f"{where}: {variable.name} {said}; its `units` attribute must be one of: {units}")
    return found
