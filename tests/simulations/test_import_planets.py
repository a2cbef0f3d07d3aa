"""The split of the planet catalogue by observatory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astrofed.client.data.table import read_table
from astrofed.simulations import import_planets

FACILITIES = [*import_planets.FACILITIES, "SuperWASP", "Kepler"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    count = len(FACILITIES)
    columns: dict[str, list[object]] = {name: [f"{name} {i}" for i in range(count)] for name in import_planets.TEXT}
    columns["disc_facility"] = list(FACILITIES)
    numbers = [*import_planets.UNITS, *(f"{name}lim" for name in import_planets.LIMITS), "pl_radj"]
    for k, name in enumerate(numbers):
        columns[name] = [None if i == 0 else float(k + i) for i in range(count)]
    pq.write_table(pa.table(columns), tmp_path / "archive.parquet")
    return tmp_path / "archive.parquet"


def test_each_row_goes_to_its_observatory(source: Path) -> None:
    tables = import_planets.convert(source)
    assert {site: len(table) for site, table in tables.items()} == {
        "kepler": 2,
        "tess": 1,
        "k2": 1,
        "la_silla": 1,
        "keck": 1,
        "others": 1,
    }
    assert tables["others"].text("disc_facility").tolist() == ["SuperWASP"]


def test_units_gaps_and_contract_are_kept(source: Path) -> None:
    kepler = import_planets.convert(source)["kepler"]
    assert np.isnan(kepler.numbers("pl_rade", "R_earth")[0])
    assert np.isfinite(kepler.numbers("pl_rade", "R_earth")[1])
    assert kepler.numbers("pl_radelim", "1").shape == (2,)
    assert "pl_radj" not in kepler.columns  # the radius in other units would give the target away
    assert (kepler.privacy_unit, kepler.privacy_key) == ("planet", "pl_name")
    assert "acknowledgement" in kepler.attributes


def test_the_command_writes_and_reports(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_planets.main([str(source), str(tmp_path / "out")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == list(import_planets.SITES)
    for site, fingerprint, rows, _size in lines:
        table = read_table(tmp_path / "out" / f"{site}.parquet")
        assert (table.fingerprint, len(table)) == (fingerprint, int(rows))
