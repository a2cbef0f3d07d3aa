"""Convert the published JWST transmission spectrum of WASP-39 b into the tables that ship, one an instrument mode.

    python simulations/import_spectrum.py FILE [TARGET_FOLDER]

FILE is jwst_wasp39b_transmission.csv (wavelength_um, half_width_um, depth_ppm, depth_err_ppm, instrument). Numbers stay
as they came.
"""

import csv
import sys
from pathlib import Path

import numpy as np

from astrofed.client.data.table import Table, build_table
from astrofed.client.tasks.spectrum_bins import MODE, NUMBERS, STAR
from astrofed.simulations.importing import import_tables

HOST, PLANET = "WASP-39", "WASP-39 b"
COLUMNS = dict(zip(NUMBERS, ("wavelength_um", "half_width_um", "depth_ppm", "depth_err_ppm"), strict=True))
ERS = "JWST Transiting Exoplanet Community ERS Team 2023, Nature 614, 649"
PRISM = "Rustamkulov et al. 2023, Nature 614, 659"
NIRCAM, G395H = "Ahrer et al. 2023, Nature 614, 653", "Alderson et al. 2023, Nature 614, 664"
SOSS, LRS = "Feinstein et al. 2023, Nature 614, 670", "Powell et al. 2024, Nature 626, 979"
MODES = {
    "nirspec_prism": ("NIRSpec PRISM", PRISM),
    "niriss_soss1": ("NIRISS SOSS order 1", SOSS),
    "niriss_soss2": ("NIRISS SOSS order 2", SOSS),
    "nircam_f322w2": ("NIRCam F322W2", NIRCAM),
    "nirspec_g395h_nrs1": ("NIRSpec G395H NRS1", G395H),
    "nirspec_g395h_nrs2": ("NIRSpec G395H NRS2", G395H),
    "miri_lrs": ("MIRI LRS", LRS),
}
"""Each mode's name and the paper of its data."""


def convert(source: Path) -> dict[str, Table]:
    """Return each mode's table by name.

    Raises:
        FileNotFoundError, KeyError, ValueError: the source is missing, or is not what this script was written for.
    """
    with source.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    known = {row["instrument"] for row in rows}
    if known != set(MODES):
        raise ValueError(
            f"{source}: the instruments are {', '.join(sorted(known))}; expected {', '.join(sorted(MODES))}"
        )
    return {f"wasp39b_{key}": _table(key, [row for row in rows if row["instrument"] == key]) for key in MODES}


def _table(key: str, rows: list[dict[str, str]]) -> Table:
    mode, paper = MODES[key]
    attributes = {
        "title": f"{PLANET}, transmission spectrum by JWST {mode}",
        "licence": "published measurements; the file they came in is part of Pyrat Bay (GPL-2)",
        "provenance": f"{paper}; {ERS}; as tabulated in github pcubillos/pyratbay@516c549, docs/_static/data",
    }
    text = {STAR: np.array([HOST] * len(rows)), MODE: np.array([mode] * len(rows))}
    numbers = {name: np.array([float(row[column]) for row in rows]) for name, column in COLUMNS.items()}
    return build_table(text | numbers, NUMBERS, "star", STAR, attributes=attributes, where=key)


def main(arguments: list[str]) -> int:
    """Convert the spectrum; see `import_tables`."""
    return import_tables(arguments, __doc__, "spectra", convert)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
