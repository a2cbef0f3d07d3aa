"""Convert two K2 light curves into the tables that ship, each with what the planet catalogue knows of its star.

    python simulations/import_photometry.py FOLDER [TARGET_FOLDER]

FOLDER holds k2_EPIC201367065.csv and k2_EPIC206154641.csv (time, flux) and nasa_pscomppars_20241015.parquet. Times and
fluxes stay as they came. Epochs are none of the catalogue's columns: each is where a transit of the catalogue's period
and radius fits the star's own flux best.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astrofed.client.data.table import Table, build_table
from astrofed.client.tasks.transits_photometry import (
    FLUX,
    KNOWN,
    STAR,
    TIME,
    Known,
    KnownPlanet,
    occupied_by,
    running_median,
)
from astrofed.client.tasks.transits_physics import Transit, light_curve, scaled_axis
from astrofed.simulations.importing import import_tables

STARS = {"k2_3": ("201367065", "K2-3"), "wasp_75": ("206154641", "WASP-75")}
EXPOSURE_S = 1765.5  # Kepler's long cadence: 270 frames of 6.54 s (Kepler Archive Manual)
EARTH_PER_SUN = 6.3781e6 / 6.957e8  # equatorial over solar radius, IAU 2015 resolution B3
STEP_DAYS = 0.002  # of the search for epochs
USUAL = (0.3, (0.4, 0.25))  # impact and limb darkening of the transit that is fitted


def convert(folder: Path) -> dict[str, Table]:
    """Return each star's table by name.

    Raises:
        FileNotFoundError, KeyError, ValueError: a source is missing, or is not what this script was written for.
    """
    import pyarrow.parquet as pq

    catalogue = pq.read_table(folder / "nasa_pscomppars_20241015.parquet").sort_by("pl_orbper").to_pylist()
    tables = {}
    for name, (epic, host) in STARS.items():
        time, flux = np.loadtxt(folder / f"k2_EPIC{epic}.csv", delimiter=",").T
        rows = [row for row in catalogue if row["hostname"] == host]
        tables[name] = _table(name, epic, host, time, flux, known(rows, time, flux))
    return tables


def known(rows: list[dict[str, Any]], time: NDArray[np.float64], flux: NDArray[np.float64]) -> Known:
    """Return what the catalogue's rows say of a star and its planets, deepest transits dated first."""
    star = {"mass_msun": rows[0]["st_mass"], "radius_rsun": rows[0]["st_rad"], "exposure_s": EXPOSURE_S}
    found = Known(**star, planets=())
    missing = 1 - flux / running_median(flux)
    for row in sorted(rows, key=lambda row: -row["pl_rade"]):
        ratio = row["pl_rade"] / row["st_rad"] * EARTH_PER_SUN
        errors = [row["pl_radeerr1"] / row["pl_rade"], row["st_raderr1"] / row["st_rad"]]
        free = ~occupied_by(time, found).any(axis=0)
        planet = KnownPlanet(
            name=row["pl_name"],
            period_days=row["pl_orbper"],
            epoch_days=round(_epoch(time[free], missing[free], row["pl_orbper"], ratio, found), 4),
            radius_ratio=round(ratio, 5),
            radius_ratio_error=round(ratio * float(np.hypot(*errors)), 5),
        )
        found = Known(**star, planets=(*found.planets, planet))
    return found


def _epoch(time: NDArray[np.float64], missing: NDArray[np.float64], period: float, ratio: float, star: Known) -> float:
    """Return the mid-transit in the first period at which the expected transits fit `missing` light [cadence] best."""
    axis = scaled_axis(period, star.density)

    def fit(epoch: float) -> float:
        expected = 1 - light_curve(time, Transit(period, epoch, ratio, USUAL[0], axis, USUAL[1]), star.exposure)
        return float(2 * expected @ missing - expected @ expected)

    coarse = max(np.arange(time[0], time[0] + period, 20 * STEP_DAYS).tolist(), key=fit)
    return float(max((coarse + STEP_DAYS * np.arange(-30, 31)).tolist(), key=fit))


def _table(
    name: str, epic: str, host: str, time: NDArray[np.float64], flux: NDArray[np.float64], found: Known
) -> Table:
    attributes = {
        "title": f"{host} (EPIC {epic}), relative flux by K2",
        "licence": "NASA public data; the files were distributed under the MIT licence by M. Hippke",
        "provenance": f"K2 light curve of EPIC {epic} as in github hippke/tls@7b8c4f0, transitleastsquares/tests; "
        "star and planets: NASA Exoplanet Archive, Planetary Systems Composite Parameters, export of 2024-10-15",
        KNOWN: found.model_dump_json(),
    }
    star = np.array([host] * len(time))
    return build_table(
        {STAR: star, TIME: time, FLUX: flux}, {TIME: "day", FLUX: "1"}, "star", STAR, attributes=attributes, where=name
    )


def main(arguments: list[str]) -> int:
    """Convert the light curves; see `import_tables`."""
    return import_tables(arguments, __doc__, "transits", convert)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
