"""The catalogue as numbers: which values are targets, which columns are inputs, and that nothing leaks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from astrofed.client.data.mistakes import DataMistake, MissingColumn, WrongUnits
from astrofed.client.data.table import Column, Table, build_table, read_table, write_table
from astrofed.client.tasks.planets_catalogue import (
    LARGEST_FEATURE,
    PlanetTwice,
    PlanetUnphysical,
    equilibrium_temperature,
    held_out,
    kepler_axis,
    read_catalogue,
)
from astrofed.shared.models.planet_layout import FEATURES, INPUTS, TARGETS
from astrofed.simulations.bundled import resolve_bundled

SITES = ("kepler", "tess", "k2", "la_silla", "keck", "others")
K2 = read_table(resolve_bundled("planets/k2"))


def numbers(name: str) -> NDArray[np.float64]:
    return K2.numbers(name, K2.units[name])


def rewritten(folder: Path, table: Table, **columns: Column) -> Path:
    """Write a table with some columns replaced."""
    changed = build_table(
        {**table.columns, **columns}, table.units, table.privacy_unit, table.privacy_key, attributes=table.attributes
    )
    write_table(changed, folder / "t.parquet")
    return folder / "t.parquet"


def with_first(name: str, value: Any, among: Table = K2) -> dict[str, Column]:
    """Give every row that value in a column, the first half only."""
    values = among.columns[name].copy()
    values[: len(values) // 2] = value
    return {name: values}


def tensors(path: Path) -> list[torch.Tensor]:
    found = read_catalogue(path, 0.2)
    return [getattr(p, f) for p in (found.training, found.held_out) for f in ("features", "targets", "given")]


def given_count(path: Path) -> list[float]:
    found = read_catalogue(path, 1.0)
    counts: list[float] = found.held_out.given.sum(dim=0).tolist()
    return counts


@pytest.mark.parametrize("site", SITES)
def test_all_observatories_can_be_read(site: str) -> None:
    path = resolve_bundled(f"planets/{site}")
    found = read_catalogue(path, 0.2)
    assert found.table.fingerprint == read_table(path).fingerprint  # the dataset's, not that of some columns
    for planets in (found.training, found.held_out):
        assert planets.features.shape == (len(planets), FEATURES)
        assert planets.targets.shape == planets.given.shape == (len(planets), len(TARGETS))
        assert bool(torch.isfinite(planets.features).all() and torch.isfinite(planets.targets).all())
        assert float(planets.features.abs().max()) <= LARGEST_FEATURE
        assert bool((planets.given.sum(dim=1) >= 1).all())
        assert bool((planets.targets[planets.given == 0] == 0).all())
        assert bool(planets.zero_albedo[planets.given[:, 0] == 1].isfinite().all())


def test_earth_and_sun_come_out_as_textbooks_say() -> None:
    one = np.array([1.0])
    assert kepler_axis(np.array([365.25636]), one) == pytest.approx(1.0)
    assert kepler_axis(np.array([4332.59]), one) == pytest.approx(5.203, rel=1e-3)  # Jupiter
    assert equilibrium_temperature(np.array([5772.0]), one, one) == pytest.approx(278.3, abs=0.3)


@pytest.mark.parametrize("name", ["pl_insol", "pl_bmasse", "pl_bmasseerr1", "sy_dist", "sy_pnum", "sy_snum"])
def test_columns_that_would_be_cheating_change_nothing(tmp_path: Path, name: str) -> None:
    shuffled = np.random.default_rng(1).permutation(K2.columns[name])
    before, after = tensors(resolve_bundled("planets/k2")), tensors(rewritten(tmp_path, K2, **{name: shuffled}))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", TARGETS)
def test_targets_reach_no_feature_not_even_by_being_there(tmp_path: Path, name: str) -> None:
    changed = rewritten(tmp_path, K2, **{name: numbers(name) * 1.7})
    before, after = read_catalogue(resolve_bundled("planets/k2"), 0.2), read_catalogue(changed, 0.2)
    assert torch.equal(before.training.features, after.training.features)
    torch.testing.assert_close(before.training.zero_albedo, after.training.zero_albedo, rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(before.training.targets, after.training.targets)


@pytest.mark.parametrize("name", INPUTS)
def test_every_input_reaches_a_feature(tmp_path: Path, name: str) -> None:
    changed = rewritten(tmp_path, K2, **{name: numbers(name) * 1.1 + 0.01})
    features = read_catalogue(resolve_bundled("planets/k2"), 0.2).training.features
    assert not torch.equal(features, read_catalogue(changed, 0.2).training.features)


@pytest.mark.parametrize(
    "changes, index",
    [
        (with_first("pl_radelim", 1.0), 1),
        (with_first("pl_radelim", -1.0), 1),
        (with_first("pl_radeerr1", np.nan), 1),
        (with_first("pl_radeerr1", 0.0), 1),
        (with_first("pl_rade", np.nan), 1),
        (with_first("pl_eqtlim", 1.0), 0),
        (with_first("pl_eqterr1", np.nan), 0),
        (with_first("pl_eqt", np.nan), 0),
        (with_first("discoverymethod", "Imaging"), 0),
        (with_first("st_teff", np.nan), 0),
        (with_first("st_rad", np.nan), 0),
    ],
)
def test_limits_estimates_and_what_is_not_an_equilibrium_temperature_are_no_targets(
    tmp_path: Path, changes: dict[str, Column], index: int
) -> None:
    before, after = given_count(resolve_bundled("planets/k2")), given_count(rewritten(tmp_path, K2, **changes))
    assert 0.3 * before[index] < after[index] < 0.7 * before[index]
    assert after[1 - index] == before[1 - index]


def test_an_absent_axis_follows_from_keplers_third_law(tmp_path: Path) -> None:
    axis = numbers("pl_orbsmax")
    without = rewritten(tmp_path, K2, pl_orbsmax=np.full(len(K2), np.nan))
    given, derived = read_catalogue(resolve_bundled("planets/k2"), 1.0), read_catalogue(without, 1.0)
    column = INPUTS.index("pl_orbsmax")
    difference = (given.held_out.features - derived.held_out.features)[:, column]
    assert float(difference.abs().median()) < 0.02 and float(difference.abs().max()) > 0
    flags = {name: derived.held_out.features[:, len(INPUTS) + INPUTS.index(name)] for name in INPUTS}
    assert torch.equal(flags["pl_orbsmax"], torch.maximum(flags["pl_orbper"], flags["st_mass"]))
    assert np.isnan(axis).any()  # the case is real


def test_a_missing_input_is_zero_with_a_flag_and_so_is_a_limit(tmp_path: Path) -> None:
    column = INPUTS.index("pl_orbeccen")
    for number, changes in enumerate(({"pl_orbeccen": np.nan}, {"pl_orbeccenlim": 1.0})):
        folder = tmp_path / str(number)
        path = rewritten(folder, K2, **{name: np.full(len(K2), value) for name, value in changes.items()})
        features = read_catalogue(path, 0.2).training.features
        assert bool((features[:, column] == 0).all() and (features[:, len(INPUTS) + column] == 1).all())


def test_planets_of_one_star_are_on_one_side() -> None:
    stars = np.concatenate([read_table(resolve_bundled(f"planets/{site}")).text("hostname") for site in SITES])
    hidden = held_out(stars, 0.2)
    assert not set(stars[hidden].tolist()) & set(stars[~hidden].tolist())
    assert 0.17 < hidden.mean() < 0.23


@settings(deadline=None, derandomize=True, max_examples=25)
@given(kept=st.sets(st.integers(0, 547), min_size=1), share=st.floats(0.05, 0.95))
def test_a_planets_side_depends_on_no_other_planet(kept: set[int], share: float) -> None:
    stars, rows = K2.text("hostname"), sorted(kept)
    np.testing.assert_array_equal(held_out(stars[rows], share), held_out(stars, share)[rows])


def test_a_planets_numbers_depend_on_no_other_planet(tmp_path: Path) -> None:
    rows = np.arange(0, len(K2), 3)
    some = build_table({n: c[rows] for n, c in K2.columns.items()}, K2.units, "planet", "pl_name")
    write_table(some, tmp_path / "t.parquet")
    whole, part = read_catalogue(resolve_bundled("planets/k2"), 1.0), read_catalogue(tmp_path / "t.parquet", 1.0)
    found = {tuple(row) for row in torch.cat((whole.held_out.features, whole.held_out.targets), 1).tolist()}
    assert {tuple(row) for row in torch.cat((part.held_out.features, part.held_out.targets), 1).tolist()} <= found


def twice(columns: dict[str, Column]) -> dict[str, Column]:
    return {name: np.concatenate([values, values[:1]]) for name, values in columns.items()}


def negative(columns: dict[str, Column]) -> dict[str, Column]:
    return {**columns, **with_first("st_rad", -1.0)}


def without_star(columns: dict[str, Column]) -> dict[str, Column]:
    return {name: values for name, values in columns.items() if name != "st_teff"}


@pytest.mark.parametrize(
    "change, mistake, words",
    [
        (twice, PlanetTwice, "planet '.*' stands in more than one row"),
        (negative, PlanetUnphysical, "'st_rad' must hold positive numbers in R_sun; 274 rows"),
        (without_star, MissingColumn, "'st_teff' is missing"),
    ],
)
def test_a_catalogue_that_cannot_be_used_is_named(
    tmp_path: Path, change: Callable[[dict[str, Column]], dict[str, Column]], mistake: type[DataMistake], words: str
) -> None:
    write_table(build_table(change(dict(K2.columns)), K2.units, "planet", "pl_name"), tmp_path / "t.parquet")
    with pytest.raises(mistake, match=rf"t\.parquet: .*{words}"):
        read_catalogue(tmp_path / "t.parquet", 0.2)


def test_other_units_are_refused(tmp_path: Path) -> None:
    write_table(build_table(K2.columns, {**K2.units, "pl_eqt": "degC"}, "planet", "pl_name"), tmp_path / "t.parquet")
    with pytest.raises(WrongUnits, match=r"t\.parquet: column 'pl_eqt' is in 'degC'; it must be in 'K'"):
        read_catalogue(tmp_path / "t.parquet", 0.2)
