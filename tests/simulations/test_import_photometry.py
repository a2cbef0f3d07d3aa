"""The conversion of light curves: values as they came, epochs where the flux says, masks for what is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astrofed.client.data.table import read_table
from astrofed.client.tasks.transits_photometry import read_photometry
from astrofed.client.tasks.transits_physics import Transit, light_curve, scaled_axis
from astrofed.simulations import import_photometry

EPOCH = 1.7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two stars like the Sun, each with one planet of a tenth of its radius."""
    rows: list[dict[str, Any]] = []
    time = np.arange(0, 40, 0.02)
    for number, (epic, host) in enumerate(import_photometry.STARS.values()):
        planet = Transit(5.0 + number, EPOCH, 0.1, 0.3, scaled_axis(5.0 + number, 1.0), (0.4, 0.25))
        noise = np.random.default_rng(number).normal(0, 1e-4, len(time))
        flux = light_curve(time, planet, 0.0204) + noise
        np.savetxt(tmp_path / f"k2_EPIC{epic}.csv", np.stack([time, flux], axis=1), delimiter=",")
        rows.append(
            {"hostname": host, "pl_name": f"{host} b", "pl_orbper": planet.period}
            | {"pl_rade": 0.1 / import_photometry.EARTH_PER_SUN, "pl_radeerr1": 0.3, "st_raderr1": 0.03}
            | {"st_rad": 1.0, "st_mass": 1.0}
        )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "nasa_pscomppars_20241015.parquet")
    return tmp_path


def test_the_command_writes_what_the_task_reads(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_photometry.main([str(folder), str(folder / "out")]) == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in told] == list(import_photometry.STARS)
    for name, fingerprint, rows, _size in told:
        path = folder / "out" / f"{name}.parquet"
        table, star = read_table(path), read_photometry(path)
        assert (table.fingerprint, len(table), table.privacy_unit) == (fingerprint, int(rows), "star")
        assert table.text("star")[0] == import_photometry.STARS[name][1]
        (planet,) = star.known.planets
        assert planet.epoch_days == pytest.approx(EPOCH, abs=0.003)
        assert planet.radius_ratio == pytest.approx(0.1, rel=1e-3) and 0.003 < planet.radius_ratio_error < 0.006
        assert star.flux[star.quiet].min() > 0.999 and star.flux[~star.quiet].min() < 0.991
