"""The multi-modal surrogate's task: what is held out, what is left untouched, what the targets are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from astrofed.client.data.cube import read_cube
from astrofed.client.site import Site
from astrofed.client.task import TrainInstruction
from astrofed.client.tasks.surrogate import MultimodalSurrogate, SeveralWorlds, left_out, mirrored
from astrofed.client.tasks.surrogate_samples import NoModality, TooFewBelts
from astrofed.client.tasks.surrogate_scores import half
from astrofed.client.tasks.surrogate_targets import Belts, belt_targets, boiling_point
from astrofed.shared.models.base import build_model
from astrofed.shared.models.surrogate_layout import MODALITIES, SCALARS, TARGETS
from astrofed.shared.plan import PlanError, check_options, load_plan
from astrofed.simulations.bundled import resolve_bundled

EARTH = resolve_bundled("worlds/earthlike")
CUBE = read_cube(EARTH)


def task(world: Path = EARTH, role: Any = "train", site: Any = None, **options: Any) -> MultimodalSurrogate:
    privacy = options.pop("privacy", None)
    plan = load_plan(
        {
            "name": "task",
            "mode": "multimodal",
            "task": {"name": "surrogate", "belts": 8, "sectors": 4, **options},
            "model": {"name": "surrogate", "width": 8, "heads": 1, "depth": 1},
            "training": {"batch_size": 24, "weight_decay": 0.1},
            "participants": [{"name": "a", "data": str(world)}],
            **({"privacy": privacy} if privacy else {}),
        }
    )
    given = check_options(MultimodalSurrogate.Options, plan.task, "task")
    return MultimodalSurrogate(plan, given, site or Site("a", world, role))


def test_no_training_target_is_held_out() -> None:
    data = task().data
    assert set(data.held_out.target_month) == {8, 9, 10, 11} and set(data.held_out.epoch) == {1}
    late = data.training.target_month[data.training.epoch == 1]
    assert late.max() < 8 and set(data.training.target_month[data.training.epoch == 0]) == set(range(4, 12))
    assert len(data.training) == (8 + 4) * 8 and len(data.held_out) == 4 * 8
    unseen = task(role="evaluate").data
    assert len(unseen.training) == 0 and len(unseen.held_out) == 16 * 8


def test_targets_are_means_over_cells() -> None:
    belts = Belts(CUBE.lat_deg, 8)
    found = belt_targets(CUBE, belts)
    area = np.cos(np.deg2rad(CUBE.lat_deg))
    assert found.shape == (2, 12, 8, len(TARGETS))
    np.testing.assert_allclose(belts.area.sum(), 1)
    whole = np.average(CUBE.fields["ts"].mean(axis=-1), axis=-1, weights=area)
    np.testing.assert_allclose((found[..., 0] * belts.area).sum(axis=-1), whole, rtol=1e-6)
    assert (found[..., 1] > 50).all() and (found[..., 1] < 400).all()
    for share in (2, 3):
        values = found[..., share][np.isfinite(found[..., share])]
        assert values.min() >= 0 and values.max() <= 1 and values.std() > 0.1


def test_a_belt_without_sea_has_no_ice_free_share() -> None:
    fields = {**CUBE.fields, "lsm": np.ones_like(CUBE.fields["lsm"])}
    found = belt_targets(replace(CUBE, fields=fields), Belts(CUBE.lat_deg, 4))
    assert np.isnan(found[..., 3]).all() and np.isfinite(found[..., :3]).all()


def test_water_boils_where_it_should() -> None:
    np.testing.assert_allclose(boiling_point(np.array([101325.0])), 373.124)
    np.testing.assert_allclose(boiling_point(np.array([47373.0])), 353.15, atol=0.7)  # steam tables: 80 °C
    hot = {**CUBE.fields, "ts": np.full_like(CUBE.fields["ts"], 380.0)}
    assert (belt_targets(replace(CUBE, fields=hot), Belts(CUBE.lat_deg, 4))[..., 2] == 0).all()


def test_the_lead_is_what_lies_between() -> None:
    now, ahead = task(lead=0), task(lead=3)
    assert torch.equal(torch.nan_to_num(now.data.held_out.now), now.data.held_out.targets)
    samples = ahead.data.training
    truth = (belt_targets(CUBE, Belts(CUBE.lat_deg, 8))[..., 0] - TARGETS[0].centre) / TARGETS[0].width
    belt = np.arange(len(samples)) % 8
    expected = truth[samples.epoch, samples.target_month, belt]
    np.testing.assert_allclose(samples.targets[:, 0].numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(
        samples.now[:, 0].numpy(), truth[samples.epoch, samples.target_month - 3, belt], atol=1e-5
    )


def test_inputs_hold_no_answer() -> None:
    """The surface of the target month can change at will: no input of a sample moves."""
    data = task()
    assert not {"ts", "rlut", "sic"} & set(data.options.variables)
    seen = data.data.training.seen
    assert all(bool(torch.isfinite(t.float()).all()) for t in seen.tensors())
    assert all(float(t.abs().max()) < 30 for t in seen.tensors()[:-1])


@pytest.mark.parametrize("privacy", [None, {"unit": "world", "noise_multiplier": 1.0, "delta": 1e-5}])
def test_blocks_of_absent_modalities_are_untouched(privacy: Any, tmp_path: Path) -> None:
    own = {"a": ["cube", "series"]}
    found = task(modalities=own, privacy=privacy, site=Site("a", EARTH, home=tmp_path))
    model = build_model(found.plan)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found.train(model, {}, TrainInstruction(1, 7))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert not any("encoders.spectrum." in key or "encoders.scalars." in key for key in changed)
    for kept in ("encoders.cube.", "encoders.series.", "queries"):
        assert any(kept in key for key in changed)
    assert all(weight.requires_grad for weight in model.parameters())


def test_training_helps_and_metrics_are_there() -> None:
    found = task(objective="crps", balance="uncertainty", consistency=0.1)
    model = build_model(found.plan)
    first = found.evaluate(model, {}, with_baselines=True)
    for number in range(1, 9):
        outcome = found.train(model, {}, TrainInstruction(number, number))
    last = found.evaluate(model, {}, with_baselines=False)
    assert last["loss"] < 0.9 * first["loss"] and last["crps"] < 0.9 * first["crps"]
    assert outcome.num_examples == len(found.data.training)
    for name in ("persistence", "climatology", "anomaly persistence"):
        assert first[f"baseline/{name}/loss"] > 0
    for key in ("nll", "coverage/ts", "sharpness/olr", "reliability/90", "only/cube/loss", "without/spectrum/loss"):
        assert np.isfinite(last[key])
    reliability = [last[f"reliability/{level}"] for level in range(10, 100, 10)]
    assert reliability == sorted(reliability)
    counts = [v for key, v in last.items() if key.startswith("conformal/test/") or key.startswith("conformal/calib")]
    assert sum(counts) == float(found.data.held_out.given.sum())


def test_the_same_seed_trains_the_same() -> None:
    found, states = task(), []
    for _ in range(2):
        model = build_model(found.plan)
        found.train(model, {}, TrainInstruction(1, 3))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_one_modality_is_always_left() -> None:
    present = torch.tensor([[True, False, True, True], [False, True, False, False]]).repeat(500, 1)
    kept = left_out(present, 0.6, torch.Generator().manual_seed(0))
    assert not bool((kept & ~present).any()) and bool(kept.any(dim=1).all())
    assert bool(kept[1::2, 1].all())
    share = kept[::2].float().mean(dim=0)[[0, 2, 3]]
    assert bool((share > 0.4).all() and (share < 0.55).all())  # 0.4, and the one that is kept where all would go
    assert torch.equal(left_out(present, 0.0, torch.Generator()), present)


def test_a_mirror_undoes_itself_and_touches_what_it_should() -> None:
    seen, names = task().data.training.seen, task().options.variables
    chosen = torch.arange(len(seen)) % 2 == 0
    once = mirrored(seen, chosen, names)
    for one, other in zip(mirrored(once, chosen, names).tensors(), seen.tensors(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(once.place[chosen, 0], -seen.place[chosen, 0])
    assert torch.equal(once.cube[chosen][:, names.index("va")], -seen.cube[chosen][:, names.index("va")])
    assert torch.equal(once.cube[chosen][:, names.index("ta")], seen.cube[chosen][:, names.index("ta")])
    half_a_year = [SCALARS.index("season, sine"), SCALARS.index("season, cosine")]
    assert torch.equal(once.scalars[chosen][:, half_a_year], -seen.scalars[chosen][:, half_a_year])
    assert torch.equal(once.at(torch.where(~chosen)[0]).place, seen.at(torch.where(~chosen)[0]).place)


def test_halves_are_halves_and_fixed() -> None:
    assert half(101, "a").sum() == 50 and (half(101, "a") == half(101, "a")).all()
    assert (half(100, "a") != half(100, "b")).any()


def test_a_site_uses_what_it_has_and_may() -> None:
    assert task().data.modalities == MODALITIES
    assert task(resolve_bundled("worlds/w1_continents")).data.modalities == ("cube", "scalars", "series")
    assert task(modalities={"a": ["series", "cube"]}).data.modalities == ("cube", "series")
    with pytest.raises(NoModality, match="'spectrum'"):
        _ = task(resolve_bundled("worlds/w1_continents"), modalities={"a": ["spectrum"]}).data


@pytest.mark.parametrize("options", [{"belts": 33}, {"sectors": 65}, {"months_in": 11, "lead": 3}])
def test_too_small_a_cube_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(TooFewBelts):
        _ = task(**options).data


def test_a_likelihood_is_not_divided_by_its_size() -> None:
    with pytest.raises(PlanError, match="objective = 'crps'"):
        task(objective="nll", balance="uncertainty")


def test_a_folder_of_worlds_is_one_site(tmp_path: Path) -> None:
    for name in ("earthlike", "w1_continents"):
        (tmp_path / f"{name}.zarr").symlink_to(resolve_bundled(f"worlds/{name}"))
    both, one = task(tmp_path), task()
    assert both.summary().num_units == 2 and both.summary().fingerprint != one.summary().fingerprint
    assert len(both.data.training) == 2 * len(one.data.training)
    seen = both.data.training.seen
    rows = torch.arange(len(one.data.training))
    for mine, alone in zip(seen.at(rows).tensors(), one.data.training.seen.tensors(), strict=True):
        assert torch.equal(mine, alone)
    assert not bool(seen.present[len(rows) :, MODALITIES.index("spectrum")].any())
    assert both.data.modalities == MODALITIES
    privacy = {"unit": "world", "noise_multiplier": 1.0, "delta": 1e-5}
    with pytest.raises(SeveralWorlds, match="account of its own"):
        _ = task(tmp_path, privacy=privacy).data
