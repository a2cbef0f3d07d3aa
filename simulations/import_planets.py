"""Split the NASA Exoplanet Archive's composite planet table by discovering observatory into the tables that ship.

    python simulations/import_planets.py nasa_pscomppars_20241015.parquet [TARGET_FOLDER]

Kept are the columns a surrogate may learn from, its targets, and what tells a measured value from an estimated one:
limit flags, upper errors (absent for estimates) and the mass's provenance.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from astrofed.client.data.table import Table, build_table
from astrofed.simulations.importing import import_tables

FACILITIES = {
    "Kepler": "kepler",
    "Transiting Exoplanet Survey Satellite (TESS)": "tess",
    "K2": "k2",
    "La Silla Observatory": "la_silla",
    "W. M. Keck Observatory": "keck",
}
OTHERS = "others"
SITES = (*FACILITIES.values(), OTHERS)
TEXT = ("pl_name", "hostname", "discoverymethod", "disc_facility", "pl_bmassprov")
UNITS = {
    "pl_orbper": "day",
    "pl_orbsmax": "au",
    "pl_orbeccen": "1",
    "pl_rade": "R_earth",
    "pl_bmasse": "M_earth",
    "pl_insol": "S_earth",
    "pl_eqt": "K",
    "st_teff": "K",
    "st_rad": "R_sun",
    "st_mass": "M_sun",
    "st_met": "dex",
    "st_logg": "log10(cm s-2)",
    "sy_dist": "pc",
    "sy_snum": "1",
    "sy_pnum": "1",
    "pl_radeerr1": "R_earth",
    "pl_bmasseerr1": "M_earth",
    "pl_eqterr1": "K",
}
LIMITS = (
    "pl_orbper",
    "pl_orbsmax",
    "pl_orbeccen",
    "pl_rade",
    "pl_bmasse",
    "pl_insol",
    "pl_eqt",
    "st_teff",
    "st_rad",
    "st_mass",
    "st_met",
    "st_logg",
)
ACKNOWLEDGEMENT = (
    "This research has made use of the NASA Exoplanet Archive, which is operated by the California Institute of "
    "Technology, under contract with the National Aeronautics and Space Administration under the Exoplanet "
    "Exploration Program."
)


def convert(source: Path) -> dict[str, Table]:
    """Return the table of each site by name, rows sorted by planet name.

    Raises:
        FileNotFoundError, KeyError: the source is not the archive's composite table.
    """
    import pyarrow.parquet as pq

    stored = pq.read_table(source).sort_by("pl_name")
    columns: dict[str, NDArray[np.float64] | NDArray[np.str_]] = {}
    for name in TEXT:
        columns[name] = np.array([value or "" for value in stored.column(name).to_pylist()], dtype=np.str_)
    units = {**UNITS, **{f"{name}lim": "1" for name in LIMITS}}
    for name in units:
        columns[name] = np.array(stored.column(name).to_pylist(), dtype=np.float64)
    sites = np.array([FACILITIES.get(facility, OTHERS) for facility in columns["disc_facility"].tolist()])
    tables = {}
    for site in SITES:
        rows = {name: values[sites == site] for name, values in columns.items()}
        tables[site] = build_table(rows, units, "planet", "pl_name", attributes=_attributes(site), where=site)
    return tables


def _attributes(site: str) -> dict[str, str]:
    return {
        "title": f"Confirmed planets discovered by {site}",
        "licence": "NASA/IPAC public data; acknowledge the archive",
        "acknowledgement": ACKNOWLEDGEMENT,
        "provenance": "NASA Exoplanet Archive, Planetary Systems Composite Parameters, export of 2024-10-15",
    }


def main(arguments: list[str]) -> int:
    """Convert the table; see `import_tables`."""
    return import_tables(arguments, __doc__, "planets", convert)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
