"""Bins of a spectrum: what is read and refused, what is held out, and how predictions of them are scored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from astrofed.client.data.mistakes import DataMistake
from astrofed.client.data.table import build_table, write_table
from astrofed.client.tasks.spectrum_bins import MODE, NUMBERS, STAR, Bins, NoSpectrum, read_spectrum
from astrofed.client.tasks.spectrum_scores import baseline_scores, baselines, measured, scores
from astrofed.shared.models.spectrum_layout import DEPTH
from astrofed.simulations.bundled import resolve_bundled

COUNT = 40


def table(path: Path, *, units: dict[str, str] = NUMBERS, **columns: Any) -> Path:
    whole = {
        STAR: np.array(["x"] * COUNT),
        MODE: np.array(["y"] * COUNT),
        "wavelength": np.linspace(1.0, 2.0, COUNT),
        "half_width": np.full(COUNT, 0.01),
        "depth": np.full(COUNT, 20_000.0),
        "depth_error": np.full(COUNT, 50.0),
    }
    write_table(build_table(whole | columns, units, "star", STAR), path)
    return path


def bins(depth: Any, error: Any = 50.0, start: float = 1.0) -> Bins:
    values = np.asarray(depth, dtype=np.float64)
    middles = start + 0.1 * np.arange(len(values))
    return Bins(middles, np.full(len(values), 0.05), values, np.broadcast_to(np.float64(error), values.shape))


def test_rows_are_put_in_the_order_of_wavelength(tmp_path: Path) -> None:
    middles = np.linspace(1.0, 2.0, COUNT)[::-1]
    found = read_spectrum(table(tmp_path / "t.parquet", wavelength=middles, depth=1e4 * middles))
    assert (found.star, found.mode, found.unit) == ("x", "y", "star")
    assert (np.diff(found.bins.wavelength) > 0).all() and found.bins.depth == pytest.approx(1e4 * found.bins.wavelength)
    assert np.exp(found.bins.edges[0]) == pytest.approx([0.99, 1.01])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({STAR: np.array(["x", *["z"] * (COUNT - 1)])}, "2 values of 'star' .* give each its own table"),
        ({MODE: np.array(["y", *["z"] * (COUNT - 1)])}, "2 values of 'mode'"),
        (
            {"depth": np.r_[np.nan, np.full(COUNT - 1, 1e4)]},
            "'depth' is nan in row 0; it must be finite and more than 0",
        ),
        ({"depth_error": np.r_[np.full(COUNT - 1, 9.0), 0]}, f"'depth_error' is 0 in row {COUNT - 1}"),
        ({"depth": np.full(COUNT, 2e6)}, r"'depth' is 2e\+06 ppm; it must be less than"),
        ({"wavelength": np.full(COUNT, 0.2)}, "leave out those that are not within 0.3 to 30 um"),
        ({"half_width": np.full(COUNT, 1.5)}, "bins reach from -0.5 to 3.5 um"),
    ],
)
def test_what_is_no_spectrum_is_refused(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(NoSpectrum, match=message):
        read_spectrum(table(tmp_path / "t.parquet", **columns))


def test_other_units_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataMistake, match="'wavelength' is in 'nm'; it must be in 'um'"):
        read_spectrum(table(tmp_path / "t.parquet", units=NUMBERS | {"wavelength": "nm"}))


def test_each_bin_trains_or_tests_by_the_seed() -> None:
    found = read_spectrum(resolve_bundled("spectra/wasp39b_nircam_f322w2"))
    training, tests = found.split(0.2, 1)
    assert (len(training), len(tests)) == (39, 10)
    assert sorted([*training.wavelength, *tests.wavelength]) == found.bins.wavelength.tolist()
    again, other = found.split(0.2, 1)[1], found.split(0.2, 2)[1]
    assert again.wavelength.tolist() == tests.wavelength.tolist() != other.wavelength.tolist()
    assert [len(part) for part in found.split(0.999, 1)] == [1, 48] and len(found.split(0.001, 1)[1]) == 1


def test_scores_are_of_the_bins_own_errors() -> None:
    tests = measured(bins([21_000.0, 21_100.0], [50.0, 100.0]), DEPTH)
    mean = torch.zeros(2, 1, dtype=torch.float64)  # 21000 ppm
    found = scores(mean, torch.full_like(mean, 1e-9), tests, DEPTH)
    assert found["chi_square"] == pytest.approx(0.5, rel=1e-4) and found["loss"] == pytest.approx(0.5**0.5, rel=1e-4)
    assert found["rmse/depth"] == pytest.approx(100 / 2**0.5, rel=1e-4)
    assert found["coverage/depth"] == 1.0  # one standard deviation off: the bin's error is in the interval
    off = scores(mean + 1, torch.full_like(mean, 1e-9), tests, DEPTH)
    assert off["coverage/depth"] == 0.0 and off["nll"] > found["nll"] + 10
    assert scores(mean + 1, torch.ones_like(mean), tests, DEPTH)["coverage/depth"] == 1.0


def test_baselines_are_what_a_site_could_say_alone() -> None:
    training, tests = bins([20_000.0, 21_000.0, 20_000.0], [10.0, 10.0, 20.0]), bins([1.0, 1.0, 1.0, 1.0], start=0.95)
    found = baselines(training, tests)
    line, spread = found["interpolation"]
    assert line == pytest.approx([20_000.0, 20_500.0, 20_500.0, 20_000.0])  # beyond the ends: the last bin
    assert spread == pytest.approx([10.0, 50**0.5, 125**0.5, 20.0])
    mean, scatter = found["constant"]
    assert mean[0] == pytest.approx((20_000 + 21_000 + 20_000 / 4) / 2.25) and 400 < scatter[0] < 500
    assert set(baselines(None, tests)) == {"constant"}
    assert baseline_scores(None, tests, DEPTH)["baseline/constant/chi_square"] == pytest.approx(0.0, abs=1e-5)


def test_lines_are_drawn_from_a_single_bin_too() -> None:
    assert baselines(bins([20_000.0]), bins([1.0, 1.0]))["interpolation"][0].tolist() == [20_000.0, 20_000.0]
