"""A star's photometry: what is read, what is masked, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from astrofed.client.data.mistakes import DataMistake
from astrofed.client.data.table import build_table, write_table
from astrofed.client.tasks.transits_photometry import NoPhotometry, occupied_by, outliers, read_photometry
from astrofed.client.tasks.transits_physics import phase
from astrofed.simulations.bundled import resolve_bundled

KNOWN = {"mass_msun": 1.0, "radius_rsun": 1.0, "exposure_s": 1765.5, "planets": []}
COUNT = 600


def table(path: Path, *, known: Any = KNOWN, **columns: Any) -> Path:
    whole = {"star": np.array(["x"] * COUNT), "time": np.arange(COUNT) / 50, "flux": np.ones(COUNT)} | columns
    attributes = {} if known is None else {"known": known if isinstance(known, str) else json.dumps(known)}
    write_table(build_table(whole, {"time": "day", "flux": "1"}, "star", "star", attributes=attributes), path)
    return path


@pytest.mark.parametrize(("name", "planets"), [("k2_3", 3), ("wasp_75", 1)])
def test_the_stars_that_ship_dim_where_planets_are_known_and_only_there(name: str, planets: int) -> None:
    star = read_photometry(resolve_bundled(f"transits/{name}"))
    assert len(star.known.planets) == planets and star.unit == "star"
    level = np.median(np.lib.stride_tricks.sliding_window_view(np.pad(star.flux, 24, mode="edge"), 49), axis=-1)
    missing = 1 - star.flux / level
    for row, planet in zip(star.occupied, star.known.planets, strict=True):
        middle = np.abs(phase(star.time, planet.period_days, planet.epoch_days)) < 0.02
        assert missing[row & middle].mean() == pytest.approx(planet.radius_ratio**2, rel=0.3)
    assert missing[star.quiet].max() < 6e-4  # of a depth of 5.9e-4 and more
    assert abs(missing[star.quiet].mean()) < 2e-5


def test_what_lies_far_out_is_left_out_but_no_known_transit() -> None:
    flux = 1 + np.random.default_rng(0).normal(0, 1e-4, COUNT)
    flux[[100, 200]] += 0.01
    flux[300:305] -= 0.01
    known = np.zeros(COUNT, dtype=np.bool_)
    known[300:305] = True
    assert np.flatnonzero(outliers(flux, known)).tolist() == [100, 200]


def test_masks_follow_the_ephemeris() -> None:
    star = read_photometry(resolve_bundled("transits/k2_3"))
    time = star.known.planets[0].epoch_days + np.array([0.0, 0.07, 0.2, 5.0, 10.0546535])
    assert occupied_by(time, star.known)[0].tolist() == [True, True, False, False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"known": None}, "lack 'known'"),
        ({"known": "{"}, "the JSON"),
        ({"known": {**KNOWN, "mass_msun": -1}}, "mass_msun"),
        ({"known": {**KNOWN, "planets": [{"name": "x b"}]}}, r"planets\.0\.period_days"),
        ({"star": np.array(["x", "y"] * (COUNT // 2))}, "2 stars"),
        ({"time": np.zeros(COUNT)}, "must grow"),
        ({"flux": np.full(COUNT, np.nan)}, "absent"),
        ({"flux": np.zeros(COUNT)}, "not positive"),
    ],
)
def test_what_is_no_photometry_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(NoPhotometry, match=message):
        read_photometry(table(tmp_path / "x.parquet", **changes))


def test_a_short_table_and_one_of_something_else_are_refused(tmp_path: Path) -> None:
    short = {name: np.arange(1.0, 10.0) for name in ("time", "flux")} | {"star": np.array(["x"] * 9)}
    with pytest.raises(DataMistake, match="at least 500"):
        read_photometry(table(tmp_path / "short.parquet", **short))
    with pytest.raises(NoPhotometry, match="lack 'known'"):
        read_photometry(resolve_bundled("histories/trappist1_b"))
