"""The conversion of the JWST spectrum: numbers as they came, a table a mode, and no other instruments."""

from pathlib import Path

import numpy as np
import pytest

from astrofed.client.data.table import read_table
from astrofed.client.tasks.spectrum_bins import read_spectrum
from astrofed.simulations import import_spectrum


def source(path: Path, instruments: list[str]) -> Path:
    rows = [f"{1 + 0.1 * i},0.02,{20_000 + i},{50 + i},{name}" for name in instruments for i in range(9)]
    path.write_text("\n".join(["wavelength_um,half_width_um,depth_ppm,depth_err_ppm,instrument", *rows]) + "\n")
    return path


def test_the_command_writes_what_the_task_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = source(tmp_path / "s.csv", list(import_spectrum.MODES))
    assert import_spectrum.main([str(given), str(tmp_path / "out")]) == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in told] == [f"wasp39b_{key}" for key in import_spectrum.MODES]
    for (name, fingerprint, rows, _size), (mode, paper) in zip(told, import_spectrum.MODES.values(), strict=True):
        path = tmp_path / "out" / f"{name}.parquet"
        table, spectrum = read_table(path), read_spectrum(path)
        assert (table.fingerprint, len(table), table.privacy_unit) == (fingerprint, int(rows), "star")
        assert (spectrum.star, spectrum.mode) == ("WASP-39", mode) and paper in table.attributes["provenance"]
        assert spectrum.bins.depth.tolist() == [20_000.0 + i for i in range(9)]
        assert spectrum.bins.error.tolist() == [50.0 + i for i in range(9)]
        np.testing.assert_allclose(spectrum.bins.wavelength, 1 + 0.1 * np.arange(9))


def test_other_instruments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the instruments are hst; expected miri_lrs"):
        import_spectrum.convert(source(tmp_path / "s.csv", ["hst"]))
