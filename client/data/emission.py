"""A world's thermal emission spectrum, which its Zarr group may hold beside the climate's fields.

`emission` [geological_time, climate_time, lat, wavelength] in W m-2 um-1, upward at the top of the atmosphere, over
`wavelength` [wavelength] in um. It is an observation of the same world: the group's fingerprint, by which the privacy
ledger knows the world, stays that of the climate.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from astrofed.client.data.contract import Unit, Variable
from astrofed.client.data.cube import open_group, read_variable, variable_names
from astrofed.client.data.mistakes import NotFinite, Unphysical, WrongCoordinates, WrongDimensions
from astrofed.client.data.world import Cube

PLANCK, LIGHT, BOLTZMANN = 6.62607015e-34, 2.99792458e8, 1.380649e-23  # J s, m s-1, J K-1 (exact, SI 2019)
WAVELENGTH = Variable(
    "wavelength", Unit("um", {"m": (1e6, 0.0), "nm": (1e-3, 0.0)}), "radiation_wavelength", ("wavelength",)
)
EMISSION = Variable(
    "emission",
    Unit("W m-2 um-1", {"W m-2 m-1": (1e-6, 0.0)}),
    "toa_outgoing_longwave_flux_per_unit_wavelength",
    ("geological_time", "climate_time", "lat", "wavelength"),
)
NAMES = (EMISSION.name, WAVELENGTH.name)


@dataclass(frozen=True)
class Emission:
    """A world's emission by month and latitude."""

    wavelength_um: NDArray[np.float64]  # [wavelength], increasing
    flux: NDArray[np.float64]  # [geological_time, climate_time, lat, wavelength], W m-2 um-1, not negative

    def brightness_temperature(self) -> NDArray[np.float64]:
        """Return the temperature in K at which a black body emits as much at that wavelength; 0 where nothing comes.

        From Planck's law for the flux of an isotropic emitter, F = 2πhc²/λ⁵ / (exp(hc/λkT) − 1).
        """
        metres = self.wavelength_um * 1e-6
        with np.errstate(divide="ignore", over="ignore"):
            ratio = 2 * np.pi * PLANCK * LIGHT**2 / metres**5 / (self.flux * 1e6)
            found = PLANCK * LIGHT / (metres * BOLTZMANN * np.log1p(ratio))
        return np.asarray(np.where(self.flux > 0, found, 0.0))


def read_emission(path: Path, cube: Cube) -> Emission | None:
    """Return the emission spectrum in a world's group; None where it has none.

    Raises:
        CubeCorrupt, WrongDimensions, WrongUnits, WrongCoordinates, NotFinite, Unphysical: it can't be used.
    """
    if EMISSION.name not in variable_names(path):
        return None
    if WAVELENGTH.name not in variable_names(path):
        raise WrongDimensions(f"{path}: emission is there, but wavelength, its coordinate in um, is not; add it")
    group = open_group(path)
    wavelength, flux = read_variable(group, WAVELENGTH, path), read_variable(group, EMISSION, path)
    expected = (*cube.fields["ps"].shape[:3], len(wavelength))
    if flux.shape != expected:
        raise WrongDimensions(
            f"{path}: emission has the shape {flux.shape}; expected {expected} = [{', '.join(EMISSION.dims)}]"
        )
    if len(wavelength) < 2 or not (np.diff(wavelength) > 0).all() or wavelength[0] <= 0:
        raise WrongCoordinates(f"{path}: wavelength must hold at least two positive, increasing values in um")
    if not np.isfinite(flux).all():
        raise NotFinite(f"{path}: emission holds values that are not finite; fill or drop those samples")
    if flux.min() < 0:
        raise Unphysical(f"{path}: emission falls to {flux.min():g} W m-2 um-1; it is upward and can't be negative")
    return Emission(wavelength, flux)
