"""Convert VPLanet's histories into the tables that ship: Earth's interior, and two planets each with their star.

    python simulations/import_histories.py FOLDER [TARGET_FOLDER]

FOLDER holds vplanet_earth_interior.parquet, vplanet_trappist1_star.parquet, vplanet_trappist1_b.parquet and
vplanet_trappist1_e.parquet. Columns get this project's names and units; values stay as they are.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astrofed.client.data.table import Table, build_table
from astrofed.client.tasks.deep_time_histories import TIME, TIME_UNIT
from astrofed.shared.models.history_layout import QUANTITIES
from astrofed.simulations.importing import import_tables

INTERIOR = {
    "mantle_temperature": "TMan[K]",
    "core_temperature": "TCore[K]",
    "mantle_radiogenic_power": "RadPowerMan[TW]",
    "core_radiogenic_power": "RadPowerCore[TW]",
    "mantle_heat_flow": "HflowUMan[TW]",
    "core_heat_flow": "HflowCMB[TW]",
    "secular_heat_flow": "HflowSecMan[TW]",
}
PLANET = {"surface_water": "SurfWaterMass[TO]", "oxygen": "OxygenMass[bars]"}
STAR = {
    "luminosity": "Luminosity[LSUN]",
    "xuv_luminosity": "LXUVTot[LSUN]",
    "star_temperature": "Temperature[K]",
}
UNITS = {quantity.name: quantity.unit for quantity in QUANTITIES} | {TIME: TIME_UNIT}


class OtherTimes(ValueError):
    """A planet's and its star's histories have other times."""


def convert(folder: Path) -> dict[str, Table]:
    """Return each history's table by name.

    Raises:
        FileNotFoundError, KeyError: a source is missing, or is not VPLanet's.
        OtherTimes: a planet's times are not its star's.
    """
    earth = _read(folder / "vplanet_earth_interior.parquet", "Time[Gyr]", 1.0, INTERIOR)
    star = _read(folder / "vplanet_trappist1_star.parquet", "Time[year]", 1e-9, STAR)
    tables = {"earth_interior": _table("earth_interior", earth, "EarthInterior")}
    for letter in "be":
        planet = _read(folder / f"vplanet_trappist1_{letter}.parquet", "Time[year]", 1e-9, PLANET)
        if not np.array_equal(planet[TIME], star[TIME]):
            raise OtherTimes(f"TRAPPIST-1 {letter}")
        tables[f"trappist1_{letter}"] = _table(f"trappist1_{letter}", star | planet, "DiffLimWaterEscape")
    return tables


def _read(path: Path, time: str, to_gyr: float, names: dict[str, str]) -> dict[str, NDArray[np.float64]]:
    import pyarrow.parquet as pq

    stored = pq.read_table(path)
    columns = {TIME: np.asarray(stored.column(time), dtype=np.float64) * to_gyr}
    return columns | {name: np.asarray(stored.column(own), dtype=np.float64) for name, own in names.items()}


def _table(world: str, columns: dict[str, NDArray[np.float64]], example: str) -> Table:
    attributes = {
        "title": f"{world} over geological time",
        "licence": "CC0-1.0 (output of our own run; VPLanet and its examples are MIT)",
        "provenance": f"VPLanet 2.5.36, example {example}",
    }
    key: dict[str, NDArray[Any]] = {"world": np.full(len(columns[TIME]), world)}
    units = {name: UNITS[name] for name in columns}
    return build_table(key | columns, units, "world", "world", attributes=attributes, where=world)


def main(arguments: list[str]) -> int:
    """Convert the histories; see `import_tables`."""
    return import_tables(arguments, __doc__, "histories", convert)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
