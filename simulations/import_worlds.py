"""Convert the ExoPlaSim worlds from NetCDF to the Zarr cubes that ship with the package (needs the `dev` extra).

    python simulations/import_worlds.py SOURCE_FOLDER [TARGET_FOLDER]

Values are rounded to the steps in `STEPS` (far below what a month's mean is known to) so that they compress. Variables
that follow from others (prw, zg) or that no task uses (clw, clt) are left out.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astrofed.client.data.contract import FIELDS
from astrofed.client.data.cube import Cube, build_cube, write_cube
from astrofed.shared.planet import EARTH_RADIUS, MOLAR_GAS_CONSTANT, Planet

WORLDS = (
    "earthlike",
    "w1_continents",
    "w2_fast_ocean",
    "w3_slow_ocean",
    "w4_tilted_land",
    "w5_super_earth",
    "w6_eccentric",
)
# Absolute steps, SI units, powers of two so that float32 holds them exactly. hus is rounded relatively (see HUS_BITS).
STEPS = {
    "ta": 2**-2,
    "ua": 2**-2,
    "va": 2**-3,
    "wap": 2**-9,
    "ps": 2**4,
    "ts": 2**-3,
    "phis": 2**2,
    "lsm": 1,
    "alb": 2**-9,
    "sic": 2**-7,
    "rst": 2**-1,
    "rlut": 2**-1,
    "rss": 2**-1,
    "rls": 2**-1,
    "hfss": 2**-1,
    "hfls": 2**-1,
    "pr": 2**-21,
    "evap": 2**-21,
}
HUS_BITS = 5  # mantissa bits kept: relative error at most 2**-6
# The source labels wap "Pa s-1"; it is hPa s-1 (see the manifest: -∫∇·v dp gives 100 times the values).
FACTORS = {"ps": 100.0, "wap": 100.0, "pr": 1000.0, "evap": 1000.0}
EXPECTED_UNITS = {"ps": "hPa", "wap": "Pa s-1", "pr": "m s-1", "evap": "m s-1"}
NAMES = {"phis": "grnz"}
MOLAR_MASS = 28.02e-3  # kg mol-1, N2 + CO2 at low CO2
KAPPA = 0.286  # R / c_p, the GCM's akap, from which it takes its c_p


def convert(source: Path, name: str) -> Cube:
    """Return the world `name` of the folder `source` (exoplasim_<name>.nc) as a cube, rounded as it ships.

    Raises:
        FileNotFoundError, KeyError, ValueError: the source is not what this script was written for.
    """
    import xarray

    with xarray.open_dataset(source / f"exoplasim_{name}.nc", engine="h5netcdf", decode_times=False) as data:
        planet = _planet(json.loads(data.attrs["planet"]))
        fields = {}
        for key in [*STEPS, "hus"]:
            variable = data[NAMES.get(key, key)].transpose(*FIELDS[key].dims)
            unit = EXPECTED_UNITS.get(key, FIELDS[key].unit.name)
            if variable.attrs["units"] != unit:
                raise ValueError(f"{name}: {key} is in {variable.attrs['units']!r}, this script expects {unit!r}")
            fields[key] = _rounded(key, variable.to_numpy().astype(np.float64) * FACTORS.get(key, 1.0))
        axes = {key: data[key].to_numpy().astype(np.float64) for key in FIELDS["ta"].dims}
        axes |= {"flux": data["flux"].to_numpy(), "pco2": data["pCO2_bar"].to_numpy().astype(np.float64) * 1e5}
        axes["pco2"] = np.round(axes["pco2"], 3)
    return build_cube(planet, fields, axes, attributes=_attributes(name), where=name)


def _rounded(key: str, values: NDArray[np.float64]) -> NDArray[np.float32]:
    if key == "hus":
        mantissa, exponent = np.frexp(values)
        scale = 2.0 ** (HUS_BITS + 1)
        return np.ldexp(np.round(mantissa * scale) / scale, exponent).astype(np.float32)
    return (np.round(values / STEPS[key]) * STEPS[key]).astype(np.float32) + np.float32(0)  # no negative zero


def _planet(given: dict[str, Any]) -> Planet:
    return Planet(
        name=given["name"],
        radius_m=given["radius"] * EARTH_RADIUS,
        gravity_m_s2=given["gravity"],
        rotation_period_s=given["rotationperiod"] * 86400.0,
        obliquity_deg=given["obliquity"],
        eccentricity=given["eccentricity"],
        star_temperature_k=given["startemp"],
        heat_capacity_j_kg_k=MOLAR_GAS_CONSTANT / MOLAR_MASS / KAPPA,
        molar_mass_kg_mol=MOLAR_MASS,
        mixed_layer_depth_m=given["mldepth"],
    )


def _attributes(name: str) -> dict[str, str]:
    return {
        "title": f"ExoPlaSim 3.4.2 T21L10 world: {name}",
        "licence": "CC0-1.0",
        "provenance": (
            "Run made for this project with ExoPlaSim 3.4.2 (Paradise et al. 2022, MNRAS 511, 3272): T21, 10 sigma "
            "levels, slab ocean 10 m, monthly means of the last simulated year of each of two epochs; not in "
            "radiative equilibrium."
        ),
        "privacy_unit": "world",
        "sign_convention": "fluxes positive downward (rlut, rls, hfss, hfls, evap negative on average)",
    }


def main(arguments: list[str]) -> int:
    """Convert every world; print name, fingerprint and bytes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, nargs="?", default=Path(__file__).parent / "data" / "worlds")
    given = parser.parse_args(arguments)
    for name in WORLDS:
        cube = convert(given.source, name)
        path = given.target / f"{name}.zarr"
        write_cube(cube, path)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        sys.stdout.write(f"{name} {cube.fingerprint} {size}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
