"""The robustness table: its data and network are right, its numbers are what it says, its targets judge soundly."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")

from astrofed.server.strategies.build import build_strategy
from astrofed.shared.plan import load_plan
from astrofed.simulations.bench.byzfl_peer import byzfl_aggregators, peer
from astrofed.simulations.bench.digits_sites import (
    DigitsSites,
    Split,
    gradients,
    initial_weights,
    load_digits,
    share_out,
)
from astrofed.simulations.bench.result import Target, this_machine
from astrofed.simulations.bench.robustness import (
    DEFAULT,
    DEFENCES,
    JUDGED,
    PLAIN,
    Defence,
    DigitsMissing,
    accuracy,
    measure_cell,
    planned,
    run_robustness_bench,
)
from astrofed.simulations.bench.robustness_datacube import plan
from astrofed.simulations.bench.robustness_findings import FINDINGS, HARD, MORE, NONE, with_findings
from astrofed.simulations.bench.robustness_findings import judge as judge_cells
from astrofed.simulations.bench.robustness_store import CellStore, OtherTable
from astrofed.simulations.bench.robustness_table import Cell, RobustnessResult, interval

SPLITS: tuple[Split, ...] = ("iid", "dirichlet 0.1", "one class each")


@pytest.mark.parametrize("split", SPLITS)
def test_every_image_has_one_site_and_every_site_an_image(split: Split) -> None:
    _, labels = load_digits()
    parts = share_out(labels, 13, split, np.random.default_rng(0))
    rows = np.concatenate(parts)
    assert len(parts) == 13 and all(len(part) for part in parts)
    assert set(rows.tolist()) == set(range(len(labels))) and len(rows) - len(labels) <= 13
    most = np.mean([np.bincount(labels[part]).max() / len(part) for part in parts])
    assert most < 0.2 if split == "iid" else most > 0.4 if split == HARD else most == 1


def test_gradients_are_those_of_torch() -> None:
    rng = np.random.default_rng(0)
    sites = DigitsSites(3, "iid", rng)
    weights = initial_weights(rng) + rng.normal(size=7510).astype(np.float32) * 0.01
    images, labels = sites.draw(5, rng)
    found = gradients(weights, images, labels)
    pieces = [torch.tensor(p) for p in np.split(weights, np.cumsum([6400, 100, 1000]))]
    shapes = ((64, 100), (100,), (100, 10), (10,))
    layers = [piece.reshape(shape).requires_grad_() for piece, shape in zip(pieces, shapes, strict=True)]
    for site in range(3):
        hidden = torch.relu(torch.tensor(images[site]) @ layers[0] + layers[1])
        loss = nn.functional.cross_entropy(hidden @ layers[2] + layers[3], torch.tensor(labels[site]))
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, layers)])
        np.testing.assert_allclose(found[site], expected.numpy(), atol=1e-6)


def test_training_learns_and_an_attack_on_plain_averaging_undoes_it() -> None:
    cells = {
        attack: measure_cell((PLAIN, HARD, attack, 4), range(2), steps=60).accuracy or 0.0 for attack in (NONE, "ipm 3")
    }
    assert cells[NONE] > 55 and cells["ipm 3"] < cells[NONE] - 15
    assert accuracy(lambda weights, models, number: weights * np.float32(np.nan), NONE, "iid", 0, steps=2) == 0.0


def test_the_same_seed_gives_the_same_cell() -> None:
    bucketing = Defence("median", ("bucketing",))
    assert measure_cell((bucketing, HARD, "alie 1.5", 4), [3], steps=5) == measure_cell(
        (bucketing, HARD, "alie 1.5", 4), [3], steps=5
    )


@pytest.mark.parametrize("attack", ["sign flip", "label flip", "mimic", "min-max"])
def test_every_attack_reaches_every_kind_of_defence(attack: str) -> None:
    for defence in (DEFAULT, Defence("centred-clipping", ("nnm",), 1.0), Defence("centred-clipping"), Defence("mda")):
        assert measure_cell((defence, "iid", attack, 4), [0], steps=3).accuracy is not None


def test_what_the_numbers_do_not_allow_is_refused_in_its_cell() -> None:
    cell = measure_cell((Defence("bulyan"), HARD, NONE, 4), [0], steps=1)
    assert cell.accuracy is None and cell.note == "13 usable replies; bulyan needs 19 to withstand f = 4"


def test_intervals_are_students() -> None:
    """Of 1, 2, 3: mean 2, deviation 1, t = 4.303."""
    mean, half_width = interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half_width == pytest.approx(4.303 / np.sqrt(3))
    assert interval([5.0]) == (5.0, None) and interval([]) == (None, None)


def judge(rows: Sequence[Cell]) -> tuple[Target, ...]:
    return judge_cells(rows, DEFAULT.name, PLAIN.name, JUDGED)


def cells(**accuracies: dict[str, float]) -> list[Cell]:
    return [
        Cell(name.replace("_", " + "), HARD, attack, 4, value, 1.0)
        for name, of in accuracies.items()
        for attack, value in of.items()
    ]


def test_targets_judge_what_was_measured_and_nothing_else() -> None:
    found = cells(krum={"sign flip": 5.0}, nnm_krum={"sign flip": 50.0}, median={"sign flip": 20.0})
    found += [Cell(PLAIN.name, HARD, NONE, 4, 95.0)]
    found += [Cell(DEFAULT.name, HARD, attack, 4, value) for attack, value in ((NONE, 93.0), ("ipm 3", 61.0))]
    targets = {target.target: target for target in judge(found)}
    assert targets["default: worst accuracy over the attacks >= 60 %"].met is True
    assert targets["default: at most 4 points below the mean without attack"].measured == -2.0
    assert targets["nnm rescues krum where sites differ, points gained > 0 (Allouah et al. 2023)"].measured == 45.0
    assert targets["nnm rescues median where sites differ, points gained > 0 (Allouah et al. 2023)"].met is None
    assert targets["cells worse than ByzFL's beyond noise: 0"].met is None
    worse = [Cell("krum", HARD, "ipm 3", 4, 50.0, 3.0, 56.0, 4.0), Cell("krum", HARD, "mimic", 4, 50.0, 3.0, 54.9, 4.0)]
    assert [cell.worse_than_byzfl for cell in worse] == [True, False]
    assert judge(worse)[-1].met is False


def test_the_table_is_for_people_and_for_json() -> None:
    rows = (*cells(krum={NONE: 60.0, "ipm 3": 50.0}), Cell("bulyan", HARD, NONE, note="needs 19"),
            Cell("bulyan", HARD, "ipm 3", note="needs 19"))  # fmt: skip
    result = RobustnessResult(this_machine(), rows, judge(rows), {"seeds": 2})
    data = json.loads(json.dumps(result.to_dict()))
    assert data["rows"][0]["accuracy"] == 60.0 and data["met"] is None
    table = result.table()
    assert table.row_count == 2 and len(table.columns) == 4 and "not evaluable" in str(table.caption)


def test_defences_cover_every_rule_with_and_without_mixing_and_the_default() -> None:
    names = [defence.name for defence in DEFENCES]
    assert DEFAULT.name in names and len(set(names)) == len(names)
    assert {"krum", "nnm + krum", "bucketing + krum", "arc + nnm + krum"} <= set(names)


def test_without_the_images_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DigitsMissing, match=r"pip install 'astrofed\[bench\]'"):
        run_robustness_bench(quick=True)


def test_byzfls_aggregation_is_ours_on_the_same_vectors() -> None:
    if byzfl_aggregators() is None:
        assert peer("krum", (), 1, {}) is None
        pytest.skip("ByzFL is not installed")
    vectors = np.random.default_rng(0).normal(size=(9, 30))
    for rule in ("mean", "median", "trimmed-mean"):
        aggregate = peer(rule, (), 2, {})
        assert aggregate is not None
        kept = np.sort(vectors, axis=0)[2:-2].mean(axis=0) if rule == "trimmed-mean" else getattr(np, rule)(vectors, 0)
        np.testing.assert_allclose(aggregate(vectors), kept, atol=1e-6)
    assert peer("fltrust", (), 2, {}) is None


def test_a_paper_is_named_beside_its_cells_and_judged_by_them() -> None:
    finding = FINDINGS[0]
    better, worse = Cell(*finding.better, 95.0, 1.0), Cell(*finding.worse, 10.0, 1.0)
    named = with_findings([better, worse, Cell("mda", HARD, "mimic")])
    assert [len(cell.findings) > 0 for cell in named] == [True, True, False]
    assert finding.target({cell.key: cell.accuracy for cell in named}).measured == 85.0
    assert finding.target({}).met is None


def test_every_finding_has_its_cells_in_the_table() -> None:
    keys = {(defence.name, *rest) for defence, *rest in planned(quick=False)}
    assert len(keys) == len(planned(quick=False))
    assert all({finding.better, finding.worse} <= keys for finding in FINDINGS)


def test_six_liars_are_more_than_krum_stands_against_alie() -> None:
    few, more = (measure_cell((Defence("krum"), "iid", "alie 1.5", f), [0], steps=80).accuracy or 0 for f in (4, MORE))
    assert more < few


def test_cells_are_kept_as_they_come_and_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    store = CellStore(path, {"seeds": 2})
    store.add(Cell("krum", HARD, NONE, 4, 60.0, 1.0))
    store.add(Cell("bulyan", HARD, NONE, 4, note="refused"))
    again = CellStore(path, {"seeds": 2})
    assert again.cells == store.cells and again.cells["krum", HARD, NONE, 4].accuracy == 60.0
    with pytest.raises(OtherTable, match="another setting"):
        CellStore(path, {"seeds": 3})
    path.write_text("{")
    with pytest.raises(OtherTable, match="can't be read"):
        CellStore(path, {"seeds": 2})


def test_the_datacube_plans_are_sound() -> None:
    for rule, pre, attack in (
        ("mean", (), "none"),
        ("krum", (), "ipm 3"),
        ("geometric-median", ("arc", "nnm"), "alie 1.5"),
    ):
        checked = load_plan(plan(rule, pre, attack, 1, 2))
        build_strategy(checked)
        assert sum(participant.attack is not None for participant in checked.participants) == (attack != "none")
