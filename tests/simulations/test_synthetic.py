"""The synthetic world is balanced by construction."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astrofed.client.data.cube import Cube
from astrofed.client.data.hydrostatic import geopotential, virtual_temperature
from astrofed.simulations.synthetic import EARTH_LIKE, synthetic_world

SLOW = dataclasses.replace(EARTH_LIKE, name="slow", rotation_period_s=4 * 86400.0)
HEAVY = dataclasses.replace(EARTH_LIKE, name="heavy", gravity_m_s2=14.5, radius_m=9e6, molar_mass_kg_mol=0.03)
WORLDS = {"earth-like": EARTH_LIKE, "slow": SLOW, "heavy": HEAVY}


@pytest.fixture(scope="module", params=list(WORLDS))
def cube(request: pytest.FixtureRequest) -> Cube:
    return synthetic_world(11, lev=6, lat=16, lon=32, planet=WORLDS[request.param])


def zonal_and_global_mean(cube: Cube, name: str) -> np.ndarray:
    """[geological_time, climate_time]"""
    zonal = cube.fields[name].astype(np.float64).mean(axis=-1)
    edges = np.sin(np.linspace(np.pi / 2, -np.pi / 2, zonal.shape[-1] + 1))
    return np.asarray(np.average(zonal, axis=-1, weights=-np.diff(edges)))


def test_hydrostatic_balance_holds_between_all_levels(cube: Cube) -> None:
    tv = virtual_temperature(cube.fields["ta"], cube.fields["hus"], cube.planet)
    mean_tv = 0.5 * (tv[:, :, 1:] + tv[:, :, :-1])
    thickness = cube.planet.gravity_m_s2 * np.diff(cube.fields["zg"].astype(np.float64), axis=2)
    expected = -cube.planet.gas_constant * mean_tv * np.diff(np.log(cube.pressure.astype(np.float64)), axis=2)
    np.testing.assert_allclose(thickness, expected, rtol=2e-5)


def test_ideal_gas_density_matches_the_thickness_of_layers(cube: Cube) -> None:
    """ρ = p / (R Tv) and dp = −ρ g dz agree to the order of the levels' spacing."""
    tv = virtual_temperature(cube.fields["ta"], cube.fields["hus"], cube.planet)
    density = cube.pressure / (cube.planet.gas_constant * tv)
    below = slice(2, None)
    middle = np.sqrt(density[:, :, below][:, :, 1:] * density[:, :, below][:, :, :-1])
    dp = np.diff(cube.pressure[:, :, below], axis=2)
    dz = np.diff(cube.fields["zg"][:, :, below], axis=2)
    np.testing.assert_allclose(dp, -middle * cube.planet.gravity_m_s2 * dz, rtol=0.03)


def test_winds_are_geostrophic_outside_the_tropics(cube: Cube) -> None:
    lat, lon = np.deg2rad(cube.lat_deg), np.deg2rad(cube.lon_deg)
    phi = geopotential(cube.fields["ta"], cube.fields["hus"], cube.fields["phis"], cube.lev, cube.planet)
    thermal = cube.planet.gas_constant * virtual_temperature(cube.fields["ta"], cube.fields["hus"], cube.planet)
    log_ps = np.log(cube.fields["ps"].astype(np.float64))[:, :, None]
    radius, step = cube.planet.radius_m, 2 * (lon[1] - lon[0])
    north = [np.gradient(f, lat, axis=-2) / radius for f in (phi, log_ps)]
    east = [(np.roll(f, -1, -1) - np.roll(f, 1, -1)) / (step * radius * np.cos(lat)[:, None]) for f in (phi, log_ps)]
    coriolis = 2 * cube.planet.angular_velocity * np.sin(lat)[:, None]
    outside = np.abs(cube.lat_deg) > 20
    for name, sign, (slope, surface) in (("ua", -1, north), ("va", 1, east)):
        wind = sign * (slope + thermal * surface) / coriolis
        np.testing.assert_allclose(cube.fields[name][..., outside, :], wind[..., outside, :], rtol=1e-3, atol=0.05)


def test_thermal_wind_holds_between_levels() -> None:
    """f ∂u/∂ ln p = R ∂T/∂y on pressure surfaces, for a dry world with a flat surface pressure, at mid-latitudes."""
    cube = synthetic_world(2, lev=20, lat=64, lon=8)
    lat = np.deg2rad(cube.lat_deg)
    tv = virtual_temperature(cube.fields["ta"], cube.fields["hus"], cube.planet)
    log_p = np.log(cube.pressure.astype(np.float64))
    shear = np.diff(cube.fields["ua"], axis=2) / np.diff(log_p, axis=2)
    tilt = np.gradient(log_p, lat, axis=-2)  # isobars rise over sigma levels where ps falls
    across = np.gradient(tv, lat, axis=-2) - np.gradient(tv, np.log(cube.lev), axis=2) * tilt
    slope = cube.planet.gas_constant / cube.planet.radius_m * 0.5 * (across[:, :, 1:] + across[:, :, :-1])
    expected = slope / (2 * cube.planet.angular_velocity * np.sin(lat)[:, None])
    middle = (np.abs(cube.lat_deg) > 30) & (np.abs(cube.lat_deg) < 60)
    difference = (shear - expected)[:, :, 4:, middle]
    assert np.sqrt(np.mean(difference**2)) < 0.03 * np.sqrt(np.mean(expected[:, :, 4:, middle] ** 2))


def test_dry_mass_is_the_same_every_month(cube: Cube) -> None:
    vapour = cube.fields["hus"].astype(np.float64).mean(axis=2)  # levels of equal thickness
    dry = cube.fields["ps"].astype(np.float64) * (1 - vapour)
    np.testing.assert_allclose(dry, np.broadcast_to(dry[:, :1, :1, :1], dry.shape), rtol=1e-6)


def test_energy_at_the_top_balances_over_the_year(cube: Cube) -> None:
    net = zonal_and_global_mean(cube, "rst") + zonal_and_global_mean(cube, "rlut")
    assert np.abs(net.mean(axis=1)).max() < 1e-3  # W m-2


def test_insolation_over_the_year_is_a_quarter_of_the_flux() -> None:
    """Mean over an eccentric orbit: S/4 (1 − e²)^(−1/2)."""
    planet = dataclasses.replace(EARTH_LIKE, eccentricity=0.2, obliquity_deg=54.0)
    cube = synthetic_world(1, lev=2, lat=64, lon=4, planet=planet)
    sunlight = cube.fields["rst"] / (1 - cube.fields["alb"])
    weights = np.cos(np.deg2rad(cube.lat_deg))
    mean = np.average(sunlight.mean(axis=(1, 3)), axis=-1, weights=weights)
    np.testing.assert_allclose(mean, cube.flux_w_m2 / 4 / np.sqrt(1 - 0.2**2), rtol=2e-3)


def test_columns_are_statically_stable_and_not_supersaturated(cube: Cube) -> None:
    kappa = cube.planet.gas_constant / cube.planet.heat_capacity_j_kg_k
    theta = cube.fields["ta"] * (1e5 / cube.pressure) ** kappa
    assert (np.diff(theta, axis=2) < 0.5).all()  # falls with pressure, within the adiabats' step error
    celsius = cube.fields["ta"].astype(np.float64) - 273.15
    saturation = 611.2 * np.exp(17.67 * celsius / (celsius + 243.5))
    ratio = 18.01528e-3 / cube.planet.molar_mass_kg_mol
    q = cube.fields["hus"].astype(np.float64)
    vapour = q * cube.pressure / (ratio + (1 - ratio) * q)
    assert (vapour <= 0.7701 * saturation).all()


def test_seasons_are_opposite_and_summers_warm(cube: Cube) -> None:
    north, south = cube.fields["ts"][0, :, 3].mean(-1), cube.fields["ts"][0, :, -4].mean(-1)
    assert np.corrcoef(north, south)[0, 1] < -0.9
    assert 200 < cube.fields["ts"].min() < cube.fields["ts"].max() < 340


@settings(deadline=None, derandomize=True, max_examples=15)
@given(st.integers(0, 2**40), st.integers(2, 5), st.integers(4, 9), st.integers(4, 9), st.integers(1, 5))
def test_any_size_and_seed_gives_a_sound_world(seed: int, lev: int, lat: int, lon: int, months: int) -> None:
    cube = synthetic_world(seed, lev=lev, lat=lat, lon=lon, climate_time=months)
    assert cube.fields["ta"].shape == (2, months, lev, lat, lon)
    assert all(np.isfinite(values).all() for values in cube.fields.values())


def test_the_seed_says_all() -> None:
    one, same, other = (synthetic_world(s, lev=2, lat=4, lon=4).fingerprint for s in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("size", [{"lev": 1}, {"lat": 3}, {"lon": 2}, {"climate_time": 0}])
def test_too_small_a_world_is_refused(size: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="needs lev ≥ 2"):
        synthetic_world(1, **size)
