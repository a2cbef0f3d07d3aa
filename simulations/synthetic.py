"""A synthetic world for tests: balanced by construction, of any size, from a seed; numpy only.

Surface temperature from a zonal seasonal energy balance model (North 1975, J. Atmos. Sci. 32, 2033), with diffusion
that scales with pressure, composition and rotation (Williams & Kasting 1997, Icarus 129, 254), plus a stationary zonal
asymmetry; moist adiabats upward to an isothermal skin; fixed relative humidity (Manabe & Wetherald 1967); dry
mass the same in every month; geopotential by hydrostatic integration; winds geostrophic, hence in thermal wind balance.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from astrofed.client.data.cube import Cube, build_cube
from astrofed.client.data.hydrostatic import geopotential, virtual_temperature
from astrofed.shared.planet import MOLAR_GAS_CONSTANT, MOLAR_MASS_WATER, Planet

Array = NDArray[np.float64]

STEFAN_BOLTZMANN = 5.670374419e-8  # W m-2 K-4
WATER_HEAT_CAPACITY = 4.186e6  # J m-3 K-1
LATENT_HEAT = 2.501e6  # J kg-1, of vaporisation at 273.15 K
OUTGOING_A, OUTGOING_B = 203.3, 2.09  # W m-2 and W m-2 K-1: outgoing = A + B (T − 273.15), North & Coakley 1979
DIFFUSION = 0.58  # W m-2 K-1, of Earth
CO2_REFERENCE_PA = 36.0
YEAR_S = 360 * 86400.0
EXACT_POLEWARD_OF_DEG = 20.0  # nearer the equator 1/f is replaced by f/f20², which vanishes at the equator
EARTH_LIKE = Planet(
    name="synthetic",
    radius_m=6.371e6,
    gravity_m_s2=9.80665,
    rotation_period_s=86400.0,
    obliquity_deg=23.4,
    eccentricity=0.0167,
    star_temperature_k=5772.0,
    heat_capacity_j_kg_k=1037.5,
)


@dataclass(frozen=True)
class _Grid:
    lev: Array  # sigma at full levels, from the top down
    thickness: Array  # sigma thickness of each layer
    lat: Array  # radians, north to south
    lon: Array  # radians
    planet: Planet

    def eastward(self, field: Array) -> Array:
        """(a cos φ)⁻¹ ∂/∂λ by centred differences, periodic."""
        step = 2 * (self.lon[1] - self.lon[0])
        difference = np.roll(field, -1, -1) - np.roll(field, 1, -1)
        return np.asarray(difference / (step * self.planet.radius_m * np.cos(self.lat)[:, None]))

    def northward(self, field: Array) -> Array:
        """a⁻¹ ∂/∂φ by centred differences, one-sided beside the poles."""
        return np.asarray(np.gradient(field, self.lat, axis=-2)) / self.planet.radius_m


def synthetic_world(
    seed: int,
    *,
    lev: int = 10,
    lat: int = 32,
    lon: int = 64,
    geological_time: int = 2,
    climate_time: int = 12,
    planet: Planet = EARTH_LIKE,
) -> Cube:
    """Return a world with stellar flux, CO2 and zonal asymmetry drawn from `seed`; sizes are numbers of points.

    Fields: ta hus ua va (and zg, derived) [geological_time, climate_time, lev, lat, lon]; ps ts phis lsm alb sic rst
    rlut [geological_time, climate_time, lat, lon]; SI units. Poleward of 20° the winds are geostrophic to rounding with
    centred differences on the grid's own points; the annual and global mean of rst + rlut is 0 but for the asymmetry's.

    Raises:
        ValueError: fewer than 2 levels, 4 latitudes, 4 longitudes, or 1 time.
    """
    if lev < 2 or lat < 4 or lon < 4 or geological_time < 1 or climate_time < 1:
        raise ValueError(f"a synthetic world needs lev ≥ 2, lat ≥ 4, lon ≥ 4 and times ≥ 1; got {lev}, {lat}, {lon}")
    rng = np.random.default_rng(seed)
    flux = rng.uniform(1300, 1400, geological_time)
    pco2 = np.exp(rng.uniform(np.log(20), np.log(1000), geological_time))
    grid = _Grid(
        lev=(np.arange(lev) + 0.5) / lev,
        thickness=np.full(lev, 1 / lev),
        lat=np.deg2rad(90 - (np.arange(lat) + 0.5) * 180 / lat),
        lon=np.arange(lon) * 2 * np.pi / lon,
        planet=planet,
    )
    coalbedo = 0.681 - 0.202 * (1.5 * np.sin(grid.lat) ** 2 - 0.5)  # North 1975
    sunlight = flux[:, None, None] * _insolation(grid.lat, climate_time, planet)  # [geological_time, climate_time, lat]
    forcing = 5.35 * np.log(pco2 / CO2_REFERENCE_PA)  # W m-2, Myhre et al. 1998
    dry_ps = 9.8e4 + pco2
    zonal = np.stack(
        [_energy_balance(sunlight[g] * coalbedo, forcing[g], dry_ps[g], grid) for g in range(geological_time)]
    )
    ts = zonal[..., None] + _asymmetry(rng, grid)
    absorbed = np.broadcast_to((sunlight * coalbedo)[..., None], ts.shape)
    outgoing = OUTGOING_A + OUTGOING_B * (ts - 273.15) - forcing[:, None, None, None]
    skin = (np.mean(outgoing, axis=(1, 2, 3)) / (2 * STEFAN_BOLTZMANN)) ** 0.25
    ta, hus, ps = _columns(ts, skin, dry_ps, grid)
    phis = np.zeros_like(ts)
    ua, va = _geostrophic_wind(geopotential(ta, hus, phis, grid.lev, planet), ta, hus, ps, grid)
    fields = {
        "ta": ta,
        "hus": hus,
        "ua": ua,
        "va": va,
        "ps": ps,
        "ts": ts,
        "phis": phis,
        "lsm": np.zeros_like(ts),
        "alb": np.broadcast_to((1 - coalbedo)[:, None], ts.shape),
        "sic": np.clip((271.0 - ts) / 5.0, 0, 1),
        "rst": absorbed,
        "rlut": -outgoing,
    }
    axes = {
        "geological_time": np.arange(geological_time, dtype=np.float64),
        "climate_time": np.arange(climate_time, dtype=np.float64),
        "lev": grid.lev,
        "lat": np.rad2deg(grid.lat),
        "lon": np.rad2deg(grid.lon),
        "flux": flux,
        "pco2": pco2,
    }
    attributes = {"title": f"synthetic world, seed {seed}", "licence": "CC0-1.0", "privacy_unit": "world"}
    return build_cube(planet, fields, axes, attributes=attributes, where=f"synthetic world {seed}")


def _insolation(lat: Array, months: int, planet: Planet) -> Array:
    """Daily mean insolation over the flux at the semi-major axis [climate_time, lat] (Berger 1978), months' middles."""
    mean_anomaly = 2 * np.pi * (np.arange(months) + 0.5) / months
    eccentric = mean_anomaly.copy()
    for _ in range(50):  # Kepler's equation by fixed point; the error shrinks by e each time
        eccentric = mean_anomaly + planet.eccentricity * np.sin(eccentric)
    ratio = np.sqrt((1 + planet.eccentricity) / (1 - planet.eccentricity))
    true_anomaly = 2 * np.arctan2(ratio * np.sin(eccentric / 2), np.cos(eccentric / 2))
    distance = 1 - planet.eccentricity * np.cos(eccentric)
    declination = np.arcsin(np.sin(np.deg2rad(planet.obliquity_deg)) * np.sin(true_anomaly - np.pi / 2))[:, None]
    sunset = np.arccos(np.clip(-np.tan(lat) * np.tan(declination), -1, 1))
    height = sunset * np.sin(lat) * np.sin(declination) + np.cos(lat) * np.cos(declination) * np.sin(sunset)
    return np.asarray(height / np.pi / distance[:, None] ** 2)


def _energy_balance(absorbed: Array, forcing: float, pressure: float, grid: _Grid) -> Array:
    """Surface temperature [climate_time, lat], K, periodic: C dT/dt = absorbed − A − B T + F + ∇·D∇T, by harmonics."""
    planet = grid.planet
    scale = (pressure / 1.0132e5) * (planet.heat_capacity_j_kg_k / 1004.0)
    diffusion = DIFFUSION * scale * (28.97e-3 / planet.molar_mass_kg_mol * planet.rotation_period_s / 86164.0) ** 2
    edges = np.sin(np.linspace(np.pi / 2, -np.pi / 2, len(grid.lat) + 1))
    conductance = diffusion * (1 - edges[1:-1] ** 2) / np.diff(np.sin(grid.lat))
    transport = np.zeros((len(grid.lat), len(grid.lat)))
    for j, value in enumerate(conductance):
        transport[j, j : j + 2] += [-value, value]
        transport[j + 1, j : j + 2] += [value, -value]
    transport /= np.diff(edges)[:, None]
    capacity = planet.mixed_layer_depth_m * WATER_HEAT_CAPACITY
    capacity += planet.heat_capacity_j_kg_k * pressure / planet.gravity_m_s2
    harmonics = np.fft.rfft(absorbed - OUTGOING_A + forcing, axis=0)
    identity = np.eye(len(grid.lat))
    for k, source in enumerate(harmonics):
        operator = (OUTGOING_B + 2j * np.pi * k / YEAR_S * capacity) * identity - transport
        harmonics[k] = np.linalg.solve(operator, source)
    return np.asarray(273.15 + np.fft.irfft(harmonics, n=len(absorbed), axis=0))


def _asymmetry(rng: np.random.Generator, grid: _Grid) -> Array:
    """A smooth stationary anomaly of surface temperature [lat, lon], K, of zonal mean 0, that vanishes at the poles."""
    anomaly = np.zeros((len(grid.lat), len(grid.lon)))
    for wave in (1, 2, 3):
        profile = np.cos(grid.lat) ** (wave + 1) * (1 + rng.uniform(-1, 1) * np.sin(grid.lat))
        anomaly += rng.uniform(0.5, 1.5) / wave * profile[:, None] * np.cos(wave * grid.lon + rng.uniform(0, 2 * np.pi))
    return anomaly


def _saturation_pressure(temperature: Array) -> Array:
    """Over water, Pa (Bolton 1980, eq. 10)."""
    celsius = temperature - 273.15
    return np.asarray(611.2 * np.exp(17.67 * celsius / (celsius + 243.5)))


def _specific_humidity(vapour: Array, pressure: Array, planet: Planet) -> Array:
    ratio = MOLAR_MASS_WATER / planet.molar_mass_kg_mol
    return np.asarray(ratio * vapour / (pressure - (1 - ratio) * vapour))


def _columns(ts: Array, skin: Array, dry_ps: Array, grid: _Grid) -> tuple[Array, Array, Array]:
    """Temperature, humidity [..., lev, lat, lon] and surface pressure [..., lat, lon] over fixed dry pressure."""
    humidity_profile = 0.77 * np.clip((grid.lev - 0.02) / 0.98, 0, 1)[:, None, None]
    dry = np.broadcast_to(dry_ps[:, None, None, None], ts.shape)
    ps = dry.copy()
    for _ in range(8):  # vapour adds to ps and ps sets the humidity: each pass gains about two digits
        ta = _temperature(ts, skin, ps, grid)
        pressure = ps[:, :, None] * grid.lev[:, None, None]
        vapour = humidity_profile * np.minimum(_saturation_pressure(ta), 0.2 * pressure)
        hus = _specific_humidity(vapour, pressure, grid.planet)
        ps = dry / (1 - np.sum(hus * grid.thickness[:, None, None], axis=2))
    return ta, hus, ps


def _temperature(ts: Array, skin: Array, ps: Array, grid: _Grid) -> Array:
    """Moist adiabats from the surface up, passing smoothly into the isothermal skin [..., lev, lat, lon]."""
    planet = grid.planet
    vapour_gas = MOLAR_GAS_CONSTANT / MOLAR_MASS_WATER
    ratio = planet.gas_constant / vapour_gas

    def slope(temperature: Array, pressure: Array) -> Array:  # dT / d ln p, American Meteorological Society glossary
        vapour = np.minimum(_saturation_pressure(temperature), 0.2 * pressure)
        mixing = ratio * vapour / (pressure - vapour)
        above = planet.gas_constant * temperature + LATENT_HEAT * mixing
        below = planet.heat_capacity_j_kg_k + LATENT_HEAT**2 * mixing / (vapour_gas * temperature**2)
        return np.asarray(above / below)

    ta = np.empty((*ts.shape[:2], len(grid.lev), *ts.shape[2:]))
    temperature, sigma = ts, 1.0
    substeps = 6
    for k in range(len(grid.lev) - 1, -1, -1):
        step = np.log(grid.lev[k] / sigma) / substeps
        for _ in range(substeps):  # Heun's method
            first = slope(temperature, sigma * ps)
            sigma *= np.exp(step)
            second = slope(temperature + step * first, sigma * ps)
            temperature = temperature + step * 0.5 * (first + second)
        ta[:, :, k] = temperature
    floor = skin[:, None, None, None, None]
    return np.asarray((ta**16 + floor**16) ** (1 / 16))


def _geostrophic_wind(phi: Array, ta: Array, hus: Array, ps: Array, grid: _Grid) -> tuple[Array, Array]:
    """f k × v = −∇ₚΦ with ∇ₚΦ = ∇σΦ + R Tv ∇ ln ps (Holton & Hakim 2013, eq. 10.32), m s-1 [..., lev, lat, lon]."""
    thermal = grid.planet.gas_constant * virtual_temperature(ta, hus, grid.planet)
    log_ps = np.log(ps)[:, :, None]
    coriolis = 2 * grid.planet.angular_velocity * np.sin(grid.lat)
    limit = 2 * grid.planet.angular_velocity * np.sin(np.deg2rad(EXACT_POLEWARD_OF_DEG))
    inverse = (coriolis / np.maximum(np.abs(coriolis), limit) ** 2)[:, None]
    ua = -inverse * (grid.northward(phi) + thermal * grid.northward(log_ps))
    va = inverse * (grid.eastward(phi) + thermal * grid.eastward(log_ps))
    return ua, va
