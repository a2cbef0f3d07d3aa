"""A climate cube in memory: one world's fields in SI units, with coordinates, planet constants and fingerprint."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from astrofed.client.data.contract import AXES, FIELDS
from astrofed.client.data.hydrostatic import geopotential_height
from astrofed.client.data.mistakes import MissingVariable, NotFinite, Unphysical, WrongCoordinates, WrongDimensions
from astrofed.shared.planet import Planet

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Precision = TypeVar("Precision", np.float32, np.float64)
NO_ATTRIBUTES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Cube:
    """One world. Arrays are read-only; build it with `build_cube` or `cube.read_cube`, which check it.

    `fields` by CF short name, SI units, float32: volume variables [geological_time, climate_time, lev, lat, lon],
    surface variables [geological_time, climate_time, lat, lon]. Fluxes are positive downward.
    """

    planet: Planet
    fields: Mapping[str, Float32]
    lev: Float64  # [lev] sigma = p / ps, 1
    lat_deg: Float64  # [lat] degrees north
    lon_deg: Float64  # [lon] degrees east
    climate_time: Float64  # [climate_time] month of the year
    geological_time: Float64  # [geological_time] Gyr ago
    flux_w_m2: Float64  # [geological_time] stellar flux at the planet
    pco2_pa: Float64  # [geological_time] surface partial pressure of CO2
    attributes: Mapping[str, str]  # title, licence, provenance, privacy_unit …
    derived: frozenset[str]  # fields that were computed here, not read
    fingerprint: str  # sha256 of planet, attributes, coordinates and given fields, wherever and however stored

    @property
    def pressure(self) -> Float32:
        """Pressure at full levels, p = lev · ps, Pa [geological_time, climate_time, lev, lat, lon]."""
        return self.fields["ps"][:, :, None] * self.lev.astype(np.float32)[:, None, None]

    @property
    def given(self) -> dict[str, Float32]:
        """The fields that were given, without the derived ones."""
        return {name: array for name, array in self.fields.items() if name not in self.derived}

    @property
    def axes(self) -> dict[str, Float64]:
        """Coordinates and boundary conditions by their names in storage (see `contract.AXES`)."""
        return {
            "geological_time": self.geological_time,
            "climate_time": self.climate_time,
            "lev": self.lev,
            "lat": self.lat_deg,
            "lon": self.lon_deg,
            "flux": self.flux_w_m2,
            "pco2": self.pco2_pa,
        }


def build_cube(
    planet: Planet,
    fields: Mapping[str, NDArray[np.floating]],
    axes: Mapping[str, NDArray[np.floating]],
    *,
    attributes: Mapping[str, str] = NO_ATTRIBUTES,
    where: str = "cube",
) -> Cube:
    """Check fields and axes (SI units, names as in `contract`), derive zg where it is absent, and return the cube.

    `zg` is derived where `phis` is given (see `hydrostatic`); without `phis` the cube has no zg. `where` names the
    source in messages. `axes` needs geological_time, climate_time, lev, lat, lon, flux and pco2.

    Raises:
        MissingVariable, WrongDimensions, WrongCoordinates, NotFinite, Unphysical: the first mistake found.
    """
    for name in AXES:
        if name not in axes:
            raise MissingVariable(f"{where}: the coordinate {name} is missing; it has: {', '.join(axes) or 'none'}")
    for name, variable in FIELDS.items():
        if variable.required and name not in fields:
            raise MissingVariable(f"{where}: the required variable {name} ({variable.standard_name}) is missing")
    coordinates = {name: _frozen(axes[name], np.float64) for name in AXES}
    check_axes(coordinates, where)
    sizes = {name: len(values) for name, values in coordinates.items()}
    arrays = {}
    for name in sorted(fields):
        if name not in FIELDS:
            raise MissingVariable(f"{where}: {name} is no variable of the contract; it knows {', '.join(FIELDS)}")
        arrays[name] = _frozen(fields[name], np.float32)
        check_field(name, arrays[name], sizes, where)
    digest = _fingerprint(planet, arrays, coordinates, attributes)
    derived = frozenset[str]()
    if "zg" not in arrays and "phis" in arrays:
        zg = geopotential_height(arrays["ta"], arrays.get("hus"), arrays["phis"], coordinates["lev"], planet)
        arrays["zg"] = _frozen(zg, np.float32)
        derived = frozenset({"zg"})
    return Cube(
        planet=planet,
        fields=MappingProxyType(arrays),
        lev=coordinates["lev"],
        lat_deg=coordinates["lat"],
        lon_deg=coordinates["lon"],
        climate_time=coordinates["climate_time"],
        geological_time=coordinates["geological_time"],
        flux_w_m2=coordinates["flux"],
        pco2_pa=coordinates["pco2"],
        attributes=MappingProxyType(dict(attributes)),
        derived=derived,
        fingerprint=digest,
    )


def check_axes(axes: Mapping[str, NDArray[np.floating]], where: str) -> None:
    """Check one-dimensional, finite, strictly monotonic coordinates in their ranges.

    Raises:
        WrongDimensions, NotFinite, WrongCoordinates, Unphysical: the first mistake found.
    """
    for name, values in axes.items():
        if values.ndim != 1 or values.size == 0:
            raise WrongDimensions(f"{where}: {name} has the shape {values.shape}; it must be a list of numbers")
        if not np.isfinite(values).all():
            raise NotFinite(f"{where}: {name} holds NaN or infinity; every coordinate must be a finite number")
        steps = np.diff(values)
        if name not in ("flux", "pco2") and values.size > 1 and not ((steps > 0).all() or (steps < 0).all()):
            raise WrongCoordinates(
                f"{where}: {name} neither rises nor falls throughout ({_brief(values)}); sort it with the fields"
            )
    for name, low, high in (("lat", -90.0, 90.0), ("lon", -360.0, 360.0), ("lev", 0.0, 1.0)):
        values = axes[name]
        if values.min() < low or values.max() > high or (name == "lev" and values.min() == 0):
            raise WrongCoordinates(
                f"{where}: {name} runs from {values.min():g} to {values.max():g}; it must lie within {low:g} and "
                f"{high:g}{' (sigma = p / ps, above 0)' if name == 'lev' else ' degrees'}"
            )
    if np.ptp(axes["lon"]) >= 360.0:
        raise WrongCoordinates(f"{where}: lon spans {np.ptp(axes['lon']):g} degrees; leave out the repeated meridian")
    for name, length in (("flux", len(axes["geological_time"])), ("pco2", len(axes["geological_time"]))):
        if len(axes[name]) != length:
            raise WrongDimensions(
                f"{where}: {name} has {len(axes[name])} values for {length} geological times; give one each"
            )
        if (axes[name] < 0).any() or (name == "flux" and (axes[name] == 0).any()):
            raise Unphysical(f"{where}: {name} is {_brief(axes[name])}; it can't be negative (flux must be above 0)")


def check_field(name: str, values: Float32, sizes: Mapping[str, int], where: str) -> None:
    """Check one field's shape against the coordinates' lengths, and its values.

    Raises:
        WrongDimensions, NotFinite, Unphysical: the first mistake found.
    """
    variable = FIELDS[name]
    expected = tuple(sizes[dim] for dim in variable.dims)
    if values.shape != expected:
        raise WrongDimensions(
            f"{where}: {name} has the shape {values.shape}; expected {expected} = [{', '.join(variable.dims)}]"
        )
    bad = np.count_nonzero(~np.isfinite(values))
    if bad:
        raise NotFinite(
            f"{where}: {name} holds {bad} NaN or infinite values of {values.size}; fill or drop those samples"
        )
    if variable.positive and values.min() <= 0:
        raise Unphysical(f"{where}: {name} falls to {values.min():g} {variable.unit.name}; it must be above 0")


def _frozen(values: NDArray[np.floating], dtype: type[Precision]) -> NDArray[Precision]:
    array: NDArray[Precision] = np.array(values, dtype=dtype, order="C")  # a copy: the caller's stays writable
    array += dtype(0)  # −0 becomes 0: equal numbers have equal fingerprints
    array.flags.writeable = False
    return array


def _brief(values: NDArray[np.floating]) -> str:
    text = ", ".join(f"{v:g}" for v in values[:4])
    return text + (", …" if values.size > 4 else "")


def _fingerprint(
    planet: Planet, fields: Mapping[str, Float32], axes: Mapping[str, Float64], attributes: Mapping[str, str]
) -> str:
    digest = hashlib.sha256()
    constants = {key: value if isinstance(value, str) else float(value) for key, value in asdict(planet).items()}
    head = {"planet": constants, "attributes": dict(attributes)}
    digest.update(json.dumps(head, sort_keys=True, ensure_ascii=True).encode())
    for kind, arrays in (("axis", axes), ("field", fields)):
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name])
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(f"\n{kind} {name} {little.dtype.str} {little.shape}\n".encode())
            digest.update(little.tobytes())
    return digest.hexdigest()
