"""What ships: it opens, is as the manifest says, and stays small."""

import re

import numpy as np
import pytest

from astrofed.client.data.check import check_dataset
from astrofed.client.data.cube import read_cube
from astrofed.client.data.table import read_table
from astrofed.shared.errors import UserMistake
from astrofed.simulations.bundled import UnknownBundledDataset, bundled_names, resolve_bundled

ROOT = resolve_bundled("bundled:worlds/earthlike").parent.parent
MANIFEST = (ROOT / "MANIFEST.md").read_text()
FINGERPRINTS = dict(re.findall(r"^\| (\w+/\w+) \|.*`([0-9a-f]{64})` \|$", MANIFEST, re.MULTILINE))
NAMES = bundled_names()
WORLDS = [name for name in NAMES if "worlds/" in name]
# Dry mass std / mean over the year, from the manifest: what the data themselves conserve.
DRY_MASS = {
    "earthlike": (1.3e-4, 2.2e-4),
    "w1_continents": (1.4e-4, 1.8e-4),
    "w2_fast_ocean": (1.7e-4, 4.3e-4),
    "w3_slow_ocean": (3.9e-4, 3.3e-4),
    "w4_tilted_land": (1.4e-4, 4.8e-4),
    "w5_super_earth": (1.4e-4, 4.7e-4),
    "w6_eccentric": (1.4e-4, 2.7e-4),
}


def test_seven_worlds_and_six_observatories_ship() -> None:
    assert len(WORLDS) == 7
    assert [name for name in NAMES if "planets/" in name] == [
        f"bundled:planets/{site}" for site in ("k2", "keck", "kepler", "la_silla", "others", "tess")
    ]


def test_three_histories_ship_each_of_the_world_that_it_is_named_for() -> None:
    histories = [name for name in NAMES if "histories/" in name]
    assert histories == [f"bundled:histories/{world}" for world in ("earth_interior", "trappist1_b", "trappist1_e")]
    for name in histories:
        assert set(read_table(resolve_bundled(name)).text("world")) == {name.rpartition("/")[2]}


def test_two_stars_ship() -> None:
    assert [name for name in NAMES if "transits/" in name] == [
        f"bundled:transits/{star}" for star in ("k2_3", "wasp_75")
    ]


def test_seven_modes_of_one_spectrum_ship() -> None:
    modes = [name for name in NAMES if "spectra/" in name]
    tables = [read_table(resolve_bundled(name)) for name in modes]
    assert len({table.text("mode")[0] for table in tables}) == len(modes) == 7
    assert sum(len(table) for table in tables) == 383
    assert {star for table in tables for star in table.text("star")} == {"WASP-39"}


def test_all_is_smaller_than_20_mb() -> None:
    assert sum(file.stat().st_size for file in ROOT.rglob("*") if file.is_file()) < 20e6


def test_the_manifest_names_each_dataset() -> None:
    assert {f"bundled:{name}" for name in FINGERPRINTS} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_dataset_is_sound_and_matches_the_manifest(name: str) -> None:
    report = check_dataset(resolve_bundled(name))
    one_unit = any(kind in name for kind in ("histories/", "spectra/", "transits/"))  # one world's rows, or one star's
    assert [problem.mistake for problem in report.problems] == (["shared privacy units"] if one_unit else [])
    assert report.fingerprint == FINGERPRINTS[name.removeprefix("bundled:")]


@pytest.mark.parametrize("name", WORLDS)
def test_each_world_is_a_world(name: str) -> None:
    cube = read_cube(resolve_bundled(name))
    assert cube.planet.name == name.rpartition("/")[2]
    assert cube.fields["ta"].shape == (2, 12, 10, 32, 64)
    assert cube.derived == {"zg"}
    assert (np.diff(cube.fields["zg"], axis=2) < 0).all()  # from the top down
    assert cube.attributes["licence"] == "CC0-1.0" and cube.attributes["privacy_unit"] == "world"
    assert 0.02 < cube.fields["wap"].std() * 2 < 0.2  # Pa s-1: a hundred times less would be hPa s-1


@pytest.mark.parametrize("name", WORLDS)
def test_dry_mass_varies_no_more_than_the_noise_floor(name: str) -> None:
    cube = read_cube(resolve_bundled(name))
    edges = [0.0]
    for level in cube.lev:
        edges.append(2 * level - edges[-1])
    vapour = (cube.fields["hus"] * np.diff(edges)[:, None, None]).sum(axis=2)
    dry = (cube.fields["ps"].astype(np.float64) * (1 - vapour)).mean(axis=-1)
    mean = np.average(dry, axis=-1, weights=np.cos(np.deg2rad(cube.lat_deg)))
    np.testing.assert_allclose(mean.std(axis=1) / mean.mean(axis=1), DRY_MASS[cube.planet.name], rtol=0.08)


def test_vertical_velocity_agrees_with_the_divergence_of_the_wind() -> None:
    """ω = −∫₀^σ ∇·(ps v) dσ in the zonal mean, in Pa s-1; over an ocean world v·∇ps adds little (see manifest)."""
    cube = read_cube(resolve_bundled("worlds/w3_slow_ocean"))
    lat, radius, ps = np.deg2rad(cube.lat_deg), cube.planet.radius_m, cube.fields["ps"][:, :, None].astype(np.float64)
    edges = [0.0]
    for level in cube.lev:
        edges.append(2 * level - edges[-1])
    thickness = np.diff(edges)[:, None]
    flow = (ps * cube.fields["va"]).mean(axis=-1)
    flow -= (flow * thickness).sum(axis=2, keepdims=True)
    divergence = np.gradient(flow * np.cos(lat), lat, axis=-1) / (radius * np.cos(lat))
    omega = -(np.cumsum(divergence * thickness, axis=2) - 0.5 * divergence * thickness)
    inside = np.s_[:, :, 1:8, 4:-4]
    computed, stored = omega[inside].ravel(), cube.fields["wap"].mean(axis=-1)[inside].ravel()
    assert np.corrcoef(computed, stored)[0, 1] > 0.99
    assert (computed @ stored) / (computed @ computed) == pytest.approx(1.0, abs=0.1)


def test_planets_are_their_own_privacy_unit() -> None:
    total = 0
    for name in NAMES:
        if "planets/" in name:
            table = read_table(resolve_bundled(name))
            assert (table.privacy_unit, table.privacy_key) == ("planet", "pl_name")
            assert table.num_units == len(table)
            assert "NASA Exoplanet Archive" in table.attributes["acknowledgement"]
            total += len(table)
    assert total == 5766


def test_the_prefix_may_be_left_out() -> None:
    assert resolve_bundled("planets/kepler") == resolve_bundled("bundled:planets/kepler")


@pytest.mark.parametrize("name", ["bundled:planets/keplr", "planets/kepler.parquet", "kepler"])
def test_an_unknown_name_says_the_nearest(name: str) -> None:
    with pytest.raises(UnknownBundledDataset, match=r"bundled:planets/kepler") as caught:
        resolve_bundled(name)
    assert isinstance(caught.value, UserMistake)


@pytest.mark.parametrize("name", ["", "bundled:", "../../etc/passwd", "worlds/../worlds/earthlike"])
def test_no_name_leads_elsewhere(name: str) -> None:
    with pytest.raises(UnknownBundledDataset):
        resolve_bundled(name)
