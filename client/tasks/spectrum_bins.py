"""One instrument mode's transmission spectrum: transit depths in bins of wavelength, and which of them are held out.

A table with a row a bin: `star` and `mode` (text, one of each), `wavelength` [um], the bin's middle, `half_width` [um],
`depth` [ppm] and `depth_error` [ppm], one standard deviation.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from astrofed.client.data.table import read_table
from astrofed.shared.errors import UserMistake
from astrofed.shared.models.spectrum_layout import LONGEST, SHORTEST
from astrofed.shared.seeds import derive_seed

STAR, MODE = "star", "mode"
NUMBERS = {"wavelength": "um", "half_width": "um", "depth": "ppm", "depth_error": "ppm"}
LEAST = 8  # bins: fewer are no spectrum
MOST_PPM = 1e6  # a transit takes no more than all light


class NoSpectrum(UserMistake):
    """A table that is no transmission spectrum of one star in one instrument mode."""


@dataclass(frozen=True)
class Bins:
    """Some bins of a spectrum; all are [bin] and float64, wavelengths grow."""

    wavelength: NDArray[np.float64]  # um, the middle
    half_width: NDArray[np.float64]  # um
    depth: NDArray[np.float64]  # ppm
    error: NDArray[np.float64]  # ppm, one standard deviation

    def __len__(self) -> int:
        return len(self.depth)

    @property
    def edges(self) -> NDArray[np.float64]:
        """Return [bin, edge] ln of the wavelengths in um at which each bin begins and ends."""
        ends = (self.wavelength - self.half_width, self.wavelength + self.half_width)
        return np.asarray(np.log(np.stack(ends, axis=1)))

    def at(self, rows: NDArray[np.bool_]) -> Self:
        """Return the bins that are chosen [bin]."""
        return type(self)(self.wavelength[rows], self.half_width[rows], self.depth[rows], self.error[rows])


@dataclass(frozen=True)
class Spectrum:
    """One star's spectrum in one instrument mode."""

    star: str
    mode: str
    bins: Bins
    unit: str
    fingerprint: str

    def split(self, held_out: float, seed: int) -> tuple[Bins, Bins]:
        """Return the bins to train on and those held out, a random share of all; at least one of each."""
        count = len(self.bins)
        order = np.random.default_rng(derive_seed(seed, "held-out bins", self.fingerprint)).permutation(count)
        tests = np.isin(np.arange(count), order[: min(max(round(held_out * count), 1), count - 1)])
        return self.bins.at(~tests), self.bins.at(tests)


def read_spectrum(path: Path) -> Spectrum:
    """Read an instrument mode's spectrum, bins in the order of wavelength.

    Raises:
        NoSpectrum: several stars or modes, a value that can't be, or bins beyond the network's range.
        UserMistake: the table can't be read, or lacks a column or its unit.
    """
    table = read_table(path, columns=[STAR, MODE, *NUMBERS], min_rows=LEAST)
    names = {}
    for column in (STAR, MODE):
        found = np.unique(table.text(column))
        if len(found) > 1:
            raise NoSpectrum(
                f"{path}: {len(found)} values of {column!r} ({found[0]!r}, {found[1]!r} …); give each its own table"
            )
        names[column] = str(found[0])
    values = {name: table.numbers(name, unit) for name, unit in NUMBERS.items()}
    for name, numbers in values.items():
        wrong = ~(np.isfinite(numbers) & (numbers > 0))
        if wrong.any():
            raise NoSpectrum(
                f"{path}: {name!r} is {numbers[wrong][0]:g} in row {int(wrong.argmax())}; it must be finite and more "
                "than 0: leave out such bins"
            )
    deepest = float(values["depth"].max())
    if deepest >= MOST_PPM:
        raise NoSpectrum(f"{path}: 'depth' is {deepest:g} ppm; it must be less than {MOST_PPM:g}, all of the light")
    low, high = values["wavelength"] - values["half_width"], values["wavelength"] + values["half_width"]
    if low.min() < SHORTEST or high.max() > LONGEST:
        raise NoSpectrum(
            f"{path}: bins reach from {low.min():.4g} to {high.max():.4g} um; leave out those that are not within "
            f"{SHORTEST:g} to {LONGEST:g} um"
        )
    order = np.argsort(values["wavelength"], kind="stable")
    bins = Bins(*(values[name][order] for name in NUMBERS))
    return Spectrum(names[STAR], names[MODE], bins, table.privacy_unit, table.fingerprint)
