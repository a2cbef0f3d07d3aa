"""A customer's folder: what its columns are taken for, what has to be confirmed, units, quality, every refusal."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astrofed.client.data.cube import read_cube, write_cube
from astrofed.client.data.mistakes import WrongColumnType, WrongUnits
from astrofed.client.data.table import read_table
from astrofed.client.intake.applying import apply_contract
from astrofed.client.intake.contract import (
    CONTRACT_FILE,
    BadContract,
    ColumnContract,
    NotConfirmed,
    propose,
    read_contract,
    write_contract,
)
from astrofed.client.intake.finding import NothingToImport, SeveralDatasets, find_source
from astrofed.client.intake.quality import FederationScales
from astrofed.client.intake.site import SiteExists, Wishes, take_in
from astrofed.client.intake.vocabulary import meaning
from astrofed.client.policy import POLICY_FILE, Policy
from astrofed.simulations.bundled import resolve_bundled
from astrofed.simulations.synthetic import synthetic_world


def ours(**changes: Any) -> pa.Table:
    """Six planets in a customer's own words and units."""
    columns: dict[str, Any] = {
        "Planet name": [f"p{i}" for i in range(6)],
        "Host star": ["a", "a", "b", "c", "d", "e"],
        "Period (hours)": [24.0, 48.0, 240.0, 480.0, 960.0, None],
        "a_au": [0.02, 0.03, 0.1, 0.15, 0.2, 0.3],
        "Teff": [5000, 5000, 5500, 6000, 4000, 3500],
        "Star radius (Rsun)": [0.9, 0.9, 1.0, 1.1, 0.6, 0.4],
        "Teq (C)": [926.85, 700.0, 400.0, 300.0, 200.0, 100.0],
        "Teq error (K)": [10.0] * 6,
        "Radius_Rjup": [1.0, 0.5, 0.2, 0.3, 0.1, 0.1],
        "notes": ["x"] * 6,
        **changes,
    }
    return pa.table({name: values for name, values in columns.items() if values is not None})


def folder_of(table: pa.Table, folder: Path) -> Path:
    folder.mkdir()
    pq.write_table(table, folder / "planets.parquet")
    return folder


@pytest.mark.parametrize(
    ("column", "name", "unit"),
    [
        ("pl_eqt", "pl_eqt", None),
        ("Teq (K)", "pl_eqt", "K"),
        ("teq_err", "pl_eqterr1", None),
        ("Radius error (Rjup)", "pl_radeerr1", "R_jup"),
        ("orbital period [days]", "pl_orbper", "day"),
        ("Fe/H", "st_met", None),
        ("star", "hostname", None),
        ("notes", None, None),
        ("telescope", None, None),
    ],
)
def test_columns_are_known_by_their_names(column: str, name: str | None, unit: str | None) -> None:
    found = meaning(column)
    assert (name, unit) == (None, None) if found is None else (found.name, found.unit) == (name, unit)


def test_guesses_have_to_be_confirmed(tmp_path: Path) -> None:
    source, out = folder_of(ours(), tmp_path / "in"), tmp_path / "site"
    with pytest.raises(NotConfirmed, match=r"it guesses pl_radeerr1, st_teff\. Look at it, set confirmed = true"):
        take_in(source, out, Wishes())
    assert not list(out.glob("data*"))
    proposed = read_contract(out / CONTRACT_FILE)
    assert proposed.left_out == ("notes",) and proposed.columns["pl_orbper"].unit == "hour"
    mended = {**proposed.columns, "pl_radeerr1": ColumnContract(relative=0.2)}
    write_contract(proposed.model_copy(update={"confirmed": True, "columns": mended}), out / "reviewed.toml")
    intake = take_in(source, out, Wishes(contract=out / "reviewed.toml"))
    table = read_table(intake.data)
    periods = table.numbers("pl_orbper", "day")
    assert periods[:2] == pytest.approx([1.0, 2.0]) and np.isnan(periods[5])
    assert table.numbers("pl_eqt", "K")[0] == pytest.approx(1200.0)
    assert table.numbers("pl_eqterr1", "K")[0] == 10.0  # an error has no offset
    assert table.numbers("pl_rade", "R_earth")[0] == pytest.approx(11.209, abs=1e-3)
    assert table.numbers("pl_radeerr1", "R_earth")[0] == pytest.approx(0.2 * 11.209, abs=1e-3)
    assert np.isnan(table.numbers("pl_eqtlim", "1")).all() and (intake.rows, intake.units) == (6, 6)


def test_a_declared_table_needs_no_confirmation_and_keeps_its_numbers(tmp_path: Path) -> None:
    source = resolve_bundled("planets/keck")
    intake = take_in(source, tmp_path / "site", Wishes(epsilon=4.0))
    before, after = read_table(source), read_table(intake.data)
    for name in ("pl_eqt", "pl_rade", "st_teff", "pl_radelim"):
        np.testing.assert_array_equal(after.numbers(name, before.units[name]), before.numbers(name, before.units[name]))
    policy = Policy.load(tmp_path / "site" / POLICY_FILE)
    assert policy == intake.policy and (policy.data.privacy, policy.data.epsilon) == ("required", 4.0)
    assert policy.tasks == ("planets",) and "customer" in policy.modes
    with pytest.raises(SiteExists, match=r"data\.parquet exists already"):
        take_in(source, tmp_path / "site", Wishes())


def test_what_is_protected_is_the_customers_to_say(tmp_path: Path) -> None:
    wishes = Wishes(confirmed=True, privacy_unit="star", privacy_key="hostname")
    intake = take_in(folder_of(ours(), tmp_path / "in"), tmp_path / "site", wishes)
    assert (intake.unit, intake.units, intake.rows) == ("star", 5, 6)


def test_quality_counts_what_is_missing_absurd_double_guessed_and_strange(tmp_path: Path) -> None:
    spoiled = ours(
        **{
            "Planet name": ["p0", "p0", "p2", "p3", "p4", "p5"],
            "a_au": [200.0] * 6,
            "Radius_Rjup": [500.0, 1, 1, 1, 1, 1],
        }
    )
    clean, bad = (
        {part.name: part for part in take_in(folder_of(t, tmp_path / n), tmp_path / f"{n} site", WISH).quality.parts}
        for n, t in (("a", ours()), ("b", spoiled))
    )
    assert clean["complete"].share == pytest.approx(1 - (4 * 6 + 1) / 60)  # four columns and a period are absent
    assert clean["distinct"].share == 1 and bad["distinct"].share == pytest.approx(5 / 6)
    assert clean["plausible"].share == 1 and bad["plausible"].share == pytest.approx(1 - 1 / 35)
    assert "pl_rade: 1 values outside" in bad["plausible"].findings[0]
    assert clean["declared"].share == pytest.approx(1 - 2 / 10)
    assert bad["alike"].share < clean["alike"].share  # type: ignore[operator]
    assert any(finding.startswith("pl_orbsmax: its median lies") for finding in bad["alike"].findings)


WISH = Wishes(confirmed=True)


def test_a_world_becomes_a_site(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_cube(synthetic_world(1, lev=3, lat=8, lon=8), folder / "world.zarr")
    intake = take_in(folder, tmp_path / "site", Wishes())
    assert (intake.kind, intake.task, intake.unit) == ("cube", "datacube", "world")
    assert read_cube(intake.data).fingerprint == intake.fingerprint
    shares = {part.name: part.share for part in intake.quality.parts}
    assert shares["complete"] == shares["distinct"] == 1 and shares["alike"] is None and 0 < intake.quality.score <= 1


def test_folders_that_are_no_dataset_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NothingToImport, match="does not exist"):
        find_source(tmp_path / "nowhere")
    with pytest.raises(NothingToImport, match="no Zarr v3 group"):
        find_source(tmp_path)
    for name in ("a.zarr", "b.zarr"):
        write_cube(synthetic_world(1, lev=2, lat=4, lon=4), tmp_path / name)
    with pytest.raises(SeveralDatasets, match=r"a\.zarr, b\.zarr"):
        find_source(tmp_path)


def test_mistakes_name_column_value_and_mend(tmp_path: Path) -> None:
    table = ours()
    contract = propose(table, "x").model_copy(update={"confirmed": True})
    parsecs = {**contract.columns, "pl_orbsmax": ColumnContract(source="a_au", unit="parsec")}
    with pytest.raises(WrongUnits, match=r"'a_au' is in 'parsec'; pl_orbsmax can be in: au, AU, km, m"):
        apply_contract(table, contract.model_copy(update={"columns": parsecs}), "x")
    text = {**contract.columns, "st_mass": ColumnContract(source="notes", unit="M_sun")}
    with pytest.raises(WrongColumnType, match="'notes' holds string; st_mass must be numbers"):
        apply_contract(table, contract.model_copy(update={"columns": text}), "x")
    with pytest.raises(BadContract, match="names 'mass', which is no column"):
        apply_contract(table, contract.model_copy(update={"columns": {"mass": ColumnContract()}}), "x")
    with pytest.raises(BadContract, match="no column names the planets"):
        propose(table.drop_columns(["Planet name"]), "x")
    (tmp_path / "c.toml").write_text('privacy_unit = "planet"\nprivacy_kay = "pl_name"\n')
    with pytest.raises(BadContract, match="did you mean 'privacy_key'"):
        read_contract(tmp_path / "c.toml")


def test_a_world_is_compared_with_the_federations(tmp_path: Path) -> None:
    cube = synthetic_world(1, lev=3, lat=8, lon=8)
    folder = tmp_path / "in"
    folder.mkdir()
    write_cube(cube, folder / "world.zarr")
    ta = cube.fields["ta"].astype(np.float64)
    weights = np.cos(np.deg2rad(cube.lat_deg))[:, None]
    mean = (ta * weights).mean(axis=(0, 1, 3, 4))[None] / weights.mean()
    for distance, share in ((0.5, 1.0), (3.0, 0.0)):
        federation = FederationScales(("ta",), mean - 10 * distance, np.full_like(mean, 10.0))
        intake = take_in(folder, tmp_path / f"site {distance}", Wishes(), federation)
        part = intake.quality.parts[-1]
        assert (part.name, part.share) == ("alike", share)
    assert part.findings == ("ta: its mean lies 3.0 widths from the federation's",)
    other = FederationScales(("ta",), np.zeros((1, 7)), np.ones((1, 7)))
    assert take_in(folder, tmp_path / "other", Wishes(), other).quality.parts[-1].share is None
