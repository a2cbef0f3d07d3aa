"""Mode 'meta' at one site: what an episode holds, learning, adaptation that stays at home, privacy, every refusal."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from astrofed.client.app import open_task
from astrofed.client.data.cube import write_cube
from astrofed.client.data.table import build_table, read_table, write_table
from astrofed.client.meta.algorithms import MetaLoss
from astrofed.client.meta.episodes import Stacked
from astrofed.client.meta.keeping import MODEL, SCORES
from astrofed.client.meta.task import MetaTask
from astrofed.client.site import Site
from astrofed.client.task import TrainInstruction
from astrofed.client.tasks.datacube import DatacubeEmulation
from astrofed.client.tasks.datacube_episodes import WorldEpisodes
from astrofed.client.tasks.datacube_samples import TooFewMonths
from astrofed.client.tasks.planets import PlanetSurrogate
from astrofed.client.tasks.planets_episodes import PlanetEpisodes, TooFewForEpisodes
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import Plan, PlanError, load_plan
from astrofed.shared.privacy.accounting import Event, epsilon
from astrofed.simulations.bundled import resolve_bundled
from astrofed.simulations.compatibility import check_plan
from astrofed.simulations.synthetic import synthetic_world

K2 = resolve_bundled("planets/k2")
PRIVACY = {"unit": "star", "noise_multiplier": 1.0, "delta": 1e-5, "clipping_norm": 2.0}


def planets(meta: dict[str, Any], **changes: Any) -> Plan:
    return load_plan(
        {
            "name": "few",
            "mode": "meta",
            "seed": 2,
            "rounds": 2,
            "task": "planets",
            "model": {"name": "mlp", "hidden": [32]},
            "training": {"optimizer": "adam", "learning_rate": 0.01, "batch_size": 8},
            "meta": {"episodes": 640, "inner_rate": 0.05, **meta},
            "participants": [{"name": "K2", "data": str(K2)}],
            **changes,
        }
    )


def opened(plan: Plan, **changes: Any) -> MetaTask:
    task = open_task(plan, Site(**{"name": "K2", "data": K2, **changes}))
    assert isinstance(task, MetaTask)
    return task


def trained(task: MetaTask, plan: Plan) -> tuple[torch.nn.Module, list[dict[str, float]]]:
    model = build_model(plan)
    told = [task.train(model, {}, TrainInstruction(n, seed=n)).metrics for n in range(1, plan.rounds + 1)]
    return model, told


@pytest.mark.parametrize("kind", ["sites", "stars"])
def test_support_and_query_are_disjoint_and_of_one_task(kind: str) -> None:
    plan = planets({"tasks": kind, "support_shots": 3, "query_shots": 4})
    base = open_task(plan.model_copy(update={"mode": "federated"}), Site("K2", K2))
    assert isinstance(base, PlanetSurrogate)
    star = {tuple(row): name for row, name in zip(base.training_rows()[0].tolist(), base.catalogue.training.star)}  # noqa: B905
    assert len(star) > 400  # features tell planets apart
    generator = torch.Generator().manual_seed(1)
    for episodes in itertools.islice(PlanetEpisodes(base).batches({}, generator, 8), 20):
        for support, counted, query, asked in zip(
            episodes.support[0], episodes.support[3], episodes.query[0], episodes.query[3], strict=True
        ):
            first = {tuple(row) for row in support[counted.bool()].tolist()}
            second = {tuple(row) for row in query[asked.bool()].tolist()}
            assert 1 <= len(first) <= 3 and 1 <= len(second) <= 4 and not first & second
            stars = {star[row] for row in first | second}
            assert len(stars) == 1 if kind == "stars" else (len(first), len(second)) == (3, 4)


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "reptile", "anil"])
def test_stars_are_learned_to_adapt_to(algorithm: str) -> None:
    plan = planets({"tasks": "stars", "algorithm": algorithm})
    task = opened(plan)
    start = task.evaluate(build_model(plan), {}, with_baselines=True)
    model, told = trained(task, plan)
    found = task.evaluate(model, {}, with_baselines=False)
    assert set(told[0]) == {"loss"}
    assert found["loss"] < 0.8 * start["baseline/zero-albedo/loss"] < start["loss"]
    assert found["loss"] < 0.95 * found["unadapted/loss"]  # a planet's siblings tell something about it


def test_a_round_repeats_to_the_bit_and_its_seed_matters() -> None:
    plan = planets({})
    first, again, other = (build_model(plan) for _ in range(3))
    for model, seed in ((first, 5), (again, 5), (other, 6)):
        opened(plan).train(model, {}, TrainInstruction(1, seed=seed))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_a_round_takes_its_share_of_the_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planets({"episodes": 41, "inner_steps": 1}, rounds=3)
    seen = []
    whole = MetaLoss.__call__

    def counting(self: MetaLoss[Any], model: torch.nn.Module, episodes: Any) -> torch.Tensor:
        seen.append(len(episodes.support[0]))
        return whole(self, model, episodes)

    monkeypatch.setattr(MetaLoss, "__call__", counting)
    opened(plan).train(build_model(plan), {}, TrainInstruction(1, seed=1))
    assert seen == [8, 8]  # 41 episodes over 3 rounds in steps of 8: two steps a round, rounded up


def test_the_first_rounds_are_those_of_the_task_alone_on_as_many_samples() -> None:
    plan = planets({"episodes": 24, "support_shots": 3, "query_shots": 4, "warm_rounds": 2}, rounds=3)
    size = plan.training.batch_size
    training = {"epochs": 1, "max_steps": 24 // 3 // size, "batch_size": 7 * size}
    plain = load_plan(plan.to_dict() | {"mode": "federated", "training": plan.training.model_dump() | training})
    model, same = build_model(plan), build_model(plan)
    told = opened(plan).train(model, {}, TrainInstruction(2, seed=7))
    assert told == open_task(plain, Site("K2", K2)).train(same, {}, TrainInstruction(2, seed=7))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    opened(plan).train(model, {}, TrainInstruction(3, seed=7))
    open_task(plain, Site("K2", K2)).train(same, {}, TrainInstruction(3, seed=7))
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))


def test_plain_rounds_leave_some_for_episodes_and_have_no_privacy() -> None:
    with pytest.raises(PlanError, match="warm_rounds: 3 of 3"):
        opened(planets({"warm_rounds": 3}, rounds=3))
    with pytest.raises(PlanError, match=r"warm_rounds: \[privacy\]"):
        check_plan(planets({"tasks": "stars", "warm_rounds": 1}, privacy=PRIVACY))


def test_the_sites_own_model_stays_at_its_home(tmp_path: Path) -> None:
    plan = planets({"tasks": "sites"})
    task = opened(plan, home=tmp_path)
    model, _ = trained(task, plan)
    told = task.evaluate(model, {}, with_baselines=False)
    kept = json.loads((tmp_path / SCORES).read_text())
    assert kept["after"]["loss"] == told["loss"] and kept["before"]["loss"] == told["unadapted/loss"]
    own = build_model(plan)
    own.load_state_dict(load_file(tmp_path / MODEL))
    same = opened(planets({"tasks": "sites", "inner_rate": 1e-12}))  # adapts to nothing
    assert same.evaluate(own, {}, with_baselines=False)["loss"] == pytest.approx(told["loss"], rel=1e-5)


def test_a_new_site_is_scored_on_what_it_was_not_adapted_to() -> None:
    plan = planets({"support_shots": 20})
    task = opened(plan, role="evaluate")
    base = open_task(plan.model_copy(update={"mode": "federated"}), Site("K2", K2, role="evaluate"))
    assert task.summary().num_eval_examples == base.summary().num_eval_examples - 20
    assert task.evaluate(build_model(plan), {}, with_baselines=True)["baseline/constant/loss"] > 0


def test_stars_are_private_as_whole_episodes(tmp_path: Path) -> None:
    table = read_table(K2)
    path = tmp_path / "stars.parquet"
    write_table(build_table(dict(table.columns), table.units, "star", "hostname"), path)
    plan = planets({"tasks": "stars"}, privacy=PRIVACY)
    task = opened(plan, data=path, home=tmp_path / "home")
    summary = task.summary()
    model, told = trained(task, plan)
    base = open_task(plan.model_copy(update={"mode": "federated", "meta": None}), Site("K2", path))
    assert isinstance(base, PlanetSurrogate)
    _, counts = np.unique(base.catalogue.training.star, return_counts=True)
    units = int((counts > 1).sum())
    steps = 40  # 640 episodes over 2 rounds in steps of 8
    spent = [Event(1.0, 8 / units, steps * done) for done in (1, 2)]
    assert [each["epsilon"] for each in told] == pytest.approx([epsilon([event], 1e-5) for event in spent], rel=1e-6)
    assert set(told[0]) == {"epsilon", "delta"} and "noise multiplier 1" in summary.description
    found = task.evaluate(model, {}, with_baselines=False)
    assert not any(name.startswith("unadapted/") for name in found)
    kept = json.loads((tmp_path / "home" / SCORES).read_text())
    assert kept["before"]["loss"] == found["loss"] != kept["after"]["loss"]  # what it was adapted to is not protected


@pytest.mark.parametrize("meta, unit", [({}, "star"), ({"tasks": "stars"}, "planet"), ({"tasks": "sites"}, "planet")])
def test_episodes_of_many_units_are_refused_with_privacy(meta: dict[str, Any], unit: str) -> None:
    with pytest.raises(PlanError, match=r"meta\.tasks with \[privacy\]: an episode of .* mixes many units"):
        check_plan(planets(meta, privacy={**PRIVACY, "unit": unit}))


def test_tasks_that_are_none_are_refused() -> None:
    with pytest.raises(PlanError, match=r"meta\.tasks: 'worlds' are no tasks of 'planets'; give one of: sites, stars"):
        check_plan(planets({"tasks": "worlds"}))
    with pytest.raises(TooFewForEpisodes, match=re.escape("meta.support_shots + meta.query_shots = 505; lower them")):
        opened(planets({"support_shots": 500})).train(build_model(planets({})), {}, TrainInstruction(1, seed=1))


def worlds(**changes: Any) -> Plan:
    return load_plan(
        {
            "name": "few",
            "mode": "meta",
            "rounds": 1,
            "task": {"name": "datacube", "variables": ["ta", "ua", "ps", "rst"], "months_in": 2, "held_out_months": 3},
            "model": {"name": "datacube-net", "base_features": 8, "coarse_features": 8},
            "training": {"batch_size": 2, "learning_rate": 5e-3},
            "meta": {"episodes": 4, "support_shots": 3, "query_shots": 2, "inner_rate": 0.05},
            "participants": [{"name": "a", "data": "a"}],
            **changes,
        }
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cubes") / "a.zarr"
    write_cube(synthetic_world(1, lev=3, lat=8, lon=8), path)
    return path


@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_a_world_is_learned_from_and_adapted_to(algorithm: str, world: Path) -> None:
    plan = worlds()
    plan = plan.model_copy(update={"meta": plan.meta.model_copy(update={"algorithm": algorithm})})  # type: ignore[union-attr]
    task = open_task(plan, Site("a", world))
    statistics, model = task.statistics(), build_model(plan)
    before = [p.detach().clone() for p in model.parameters()]
    assert task.train(model, statistics, TrainInstruction(1, seed=1)).metrics["loss"] > 0
    assert all(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    found = task.evaluate(model, statistics, with_baselines=True)
    assert found["loss"] != found["unadapted/loss"] and found["baseline/persistence/loss"] > 0
    maps = task.showcase(model, statistics)["maps"]
    assert maps and np.isfinite(maps[0]["prediction"]).all()
    unseen = open_task(plan, Site("b", world, role="evaluate"))
    assert unseen.summary().num_eval_examples == 10 - 3
    assert unseen.evaluate(model, statistics, with_baselines=False)["unadapted/loss"] > 0


def test_an_episode_of_a_world_asks_for_months_that_were_not_shown(world: Path) -> None:
    plan = worlds()
    base = open_task(plan.model_copy(update={"mode": "federated"}), Site("a", world))
    assert isinstance(base, DatacubeEmulation)
    batches = WorldEpisodes(base).batches(base.statistics(), torch.Generator().manual_seed(1), 2)
    for step in itertools.islice(batches, 10):
        assert not isinstance(step, Stacked) and len(step) == 2
        for episode in step:
            shown, asked = ({s.target for s in batch.samples} for batch in (episode.support, episode.query))
            assert len(shown) == 3 and len(asked) == 2 and not shown & asked
            assert episode.support.state.shape[3] == episode.query.state.shape[3]
            assert (1 in episode.support.samples[0].epochs) <= (max(shown | asked) < 12 - 3)


def test_a_world_is_one_private_unit(world: Path) -> None:
    plan = worlds(privacy={**PRIVACY, "unit": "world"})
    task = open_task(plan, Site("a", world))
    told = task.train(build_model(plan), task.statistics(), TrainInstruction(1, seed=1)).metrics
    assert told["epsilon"] == pytest.approx(epsilon([Event(1.0, 1.0, 2)], 1e-5))


def test_too_few_months_for_an_episode_are_named(world: Path) -> None:
    plan = worlds(meta={"support_shots": 9, "query_shots": 2})
    task = open_task(plan, Site("a", world))
    with pytest.raises(TooFewMonths, match=r"10 samples are fewer than meta\.support_shots = 9 and 2 more"):
        task.train(build_model(plan), task.statistics(), TrainInstruction(1, seed=1))


def test_a_sites_policy_hears_of_how_many_planets_a_score_is() -> None:
    task = opened(planets({"tasks": "stars"}))
    scored = task.summary().num_eval_examples
    for name in ("loss", "unadapted/loss", "baseline/constant/loss"):
        assert task.evaluated_units(name) == scored
    assert 0 < task.evaluated_units("rmse/pl_eqt") < scored and task.evaluated_units("no such metric") == 0
