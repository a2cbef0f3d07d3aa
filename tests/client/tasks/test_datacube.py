"""The datacube task: nothing leaks from held-out months, training learns, and every number is what it says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from astrofed.client.app import open_task
from astrofed.client.data.cube import Cube, build_cube, read_cube, write_cube
from astrofed.client.privacy.ledger import BudgetSpent
from astrofed.client.privacy.refusals import WrongPrivacyUnit
from astrofed.client.site import Site
from astrofed.client.task import Statistics, Task, TrainInstruction
from astrofed.client.tasks.datacube import DatacubeEmulation, LevelsDiffer
from astrofed.client.tasks.datacube_batches import stack
from astrofed.client.tasks.datacube_objective import BalancedInPrivate
from astrofed.client.tasks.datacube_physics import FixerNotEvaluable
from astrofed.client.tasks.datacube_samples import TooFewMonths, VariableNotInCube
from astrofed.client.tasks.datacube_scales import ConstantVariable
from astrofed.shared.models.base import Model, build_model
from astrofed.shared.plan import Plan, load_plan
from astrofed.shared.privacy.accounting import Event, epsilon
from astrofed.simulations.bundled import resolve_bundled
from astrofed.simulations.simulate import simulate
from astrofed.simulations.synthetic import synthetic_world

Store = Callable[[Cube], Path]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Write a cube to a path of its own."""

    def write(cube: Cube) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr"
        write_cube(cube, path)
        return path

    return write


def small_world(seed: int = 1) -> Cube:
    """A synthetic world with weather of its own in every month."""
    cube = synthetic_world(seed, lev=3, lat=8, lon=8)
    rng = np.random.default_rng(seed)
    noise = {
        name: rng.normal(0, size, cube.fields[name].shape) for name, size in (("ta", 1.0), ("ua", 1.0), ("ps", 100))
    }
    return build_cube(cube.planet, {**cube.given, **{k: cube.fields[k] + v for k, v in noise.items()}}, cube.axes)


def with_other_months(cube: Cube, months: slice, epoch: int) -> Cube:
    """The same world with quite different weather in some months of one epoch."""
    fields = {}
    for name, values in cube.given.items():
        fields[name] = values.copy()
        if name not in ("lsm", "phis"):
            fields[name][epoch, months] = 1.3 * values[epoch, months] + 1e-3
    return build_cube(cube.planet, fields, cube.axes)


def plan(**changes: Any) -> Plan:
    task = {"name": "datacube", "variables": ["ta", "hus", "ua", "va", "ps", "rst"], **changes.pop("task", {})}
    return load_plan(
        {
            "name": "t",
            "rounds": 4,
            "task": task,
            "model": {"name": "datacube-net", "base_features": 8, "coarse_features": 8},
            "training": {"batch_size": 2, "learning_rate": 5e-3},
            "participants": [{"name": "a", "data": "a"}, {"name": "unseen", "data": "b", "role": "evaluate"}],
            **changes,
        }
    )


def open_site(path: Path, plan_: Plan | None = None, **changes: Any) -> Task:
    return open_task(plan_ or plan(), Site(changes.pop("name", "site a"), path, **changes))


def trained(task: Task, statistics: Statistics, seed: int = 7, rounds: int = 1) -> tuple[Model, list[float]]:
    model = build_model(task.plan)
    losses = [
        task.train(model, statistics, TrainInstruction(number, seed + number)).metrics["loss"]
        for number in range(1, rounds + 1)
    ]
    return model, losses


def same_weights(first: Model, second: Model) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_site_tells_counts_and_never_data(store: Store) -> None:
    cube = small_world()
    summary = open_site(store(cube)).summary()
    assert (summary.name, summary.role, summary.num_examples, summary.num_eval_examples) == ("site a", "train", 10, 6)
    assert (summary.num_units, summary.unit, summary.fingerprint) == (1, "world", cube.fingerprint)
    assert summary.description == "world synthetic: 2 epochs of 12 months, levels, latitudes, longitudes 3 x 8 x 8"
    unseen = open_site(store(cube), role="evaluate").summary()
    assert (unseen.num_examples, unseen.num_eval_examples) == (0, 10)


def test_held_out_months_reach_neither_statistics_nor_weights(store: Store) -> None:
    """Whatever the last months of the last epoch hold, all that is learned is the same to the bit."""
    cube = small_world()
    ours, theirs = open_site(store(cube)), open_site(store(with_other_months(cube, slice(6, 12), epoch=1)))
    statistics, others = ours.statistics(), theirs.statistics()
    assert statistics.keys() == others.keys()
    for key, value in statistics.items():
        np.testing.assert_array_equal(value, others[key], err_msg=key)
    first, second = trained(ours, statistics)[0], trained(theirs, statistics)[0]
    assert same_weights(first, second)
    evaluations = [task.evaluate(first, statistics, with_baselines=False)["loss"] for task in (ours, theirs)]
    assert evaluations[0] != evaluations[1]


@pytest.mark.parametrize(("months", "epoch"), [(slice(0, 1), 0), (slice(5, 6), 1), (slice(11, 12), 0)])
def test_all_other_months_are_learned_from(store: Store, months: slice, epoch: int) -> None:
    cube = small_world()
    ours, theirs = open_site(store(cube)), open_site(store(with_other_months(cube, months, epoch)))
    statistics = ours.statistics()
    assert not np.array_equal(statistics["median:field/mean"], theirs.statistics()["median:field/mean"])
    assert not same_weights(trained(ours, statistics)[0], trained(theirs, statistics)[0])


def test_an_unseen_world_contributes_nothing(store: Store) -> None:
    assert open_site(store(small_world()), role="evaluate").statistics() == {}


def test_training_follows_its_seed_and_nothing_else(store: Store) -> None:
    task = open_site(store(small_world()))
    statistics = task.statistics()
    torch.manual_seed(1)
    first = trained(task, statistics)[0]
    torch.manual_seed(2)
    assert same_weights(first, trained(task, statistics)[0])
    assert not same_weights(first, trained(task, statistics, seed=8)[0])


def test_training_beats_persistence_on_months_it_never_saw(store: Store) -> None:
    task = open_site(store(small_world()), plan(rounds=12))
    statistics = task.statistics()
    model, losses = trained(task, statistics, rounds=12)
    found = task.evaluate(model, statistics, with_baselines=True)
    assert losses[-1] < 0.5 * losses[0]
    assert found["loss"] < 0.8 * found["baseline/persistence/loss"]


def test_a_new_model_scores_as_persistence_does(store: Store) -> None:
    """It predicts little change; and with the scale of changes as its unit, no change costs about 1."""
    task = open_site(store(small_world()))
    found = task.evaluate(build_model(task.plan), task.statistics(), with_baselines=True)
    assert found["baseline/persistence/loss"] == pytest.approx(1, abs=0.25)
    assert found["loss"] == pytest.approx(found["baseline/persistence/loss"], rel=0.05)


def test_metrics_of_a_training_site_and_of_an_unseen_world(store: Store) -> None:
    path = store(small_world())
    task, unseen = open_site(path), open_site(path, role="evaluate")
    statistics, model = task.statistics(), build_model(task.plan)
    found = task.evaluate(model, statistics, with_baselines=True)
    assert {"loss", "rmse/ta", "rmse/ta/0", "rmse/ta/2", "rmse/ps"} <= found.keys() and "rmse/ps/0" not in found
    for name in ("persistence", "climatology", "ridge"):
        assert {f"baseline/{name}/loss", f"baseline/{name}/rmse/hus"} <= found.keys()
    assert all(np.isfinite(value) for value in found.values())
    plain = task.evaluate(model, statistics, with_baselines=False)
    assert plain == {key: value for key, value in found.items() if not key.startswith("baseline/")}
    foreign = unseen.evaluate(model, statistics, with_baselines=True)
    assert "baseline/ridge/loss" in foreign and not any("climatology" in key for key in foreign)


def test_a_world_of_one_epoch_has_no_climatology(store: Store) -> None:
    cube = synthetic_world(1, lev=3, lat=8, lon=8, geological_time=1)
    task = open_site(store(cube))
    found = task.evaluate(build_model(task.plan), task.statistics(), with_baselines=True)
    assert not any("climatology" in key for key in found)


def test_errors_in_si_are_those_of_the_fields_themselves(store: Store) -> None:
    """Persistence's error written out from the cube's own arrays: area-weighted, over the six held-out months."""
    cube = small_world()
    task = open_site(store(cube))
    found = task.evaluate(build_model(task.plan), task.statistics(), with_baselines=True)
    area = np.cos(np.deg2rad(cube.lat_deg))[:, None]
    for name in ("ta", "hus", "ps"):
        steps = np.diff(cube.fields[name].astype(np.float64), axis=1)[1, 5:]  # into months 6 to 11 of the last epoch
        expected = np.sqrt((steps**2 * area).mean() / area.mean())
        assert found[f"baseline/persistence/rmse/{name}"] == pytest.approx(expected, rel=1e-4), name


def test_maps_show_the_cube_s_own_months(store: Store) -> None:
    cube = small_world()
    task = open_site(store(cube))
    shown = task.showcase(build_model(task.plan), task.statistics())["maps"]
    assert [(entry["variable"], entry["units"]) for entry in shown] == [("ta", "K"), ("ua", "m/s"), ("hus", "kg/kg")]
    for entry in shown:
        level = int(np.abs(cube.lev - entry["level"]).argmin())
        np.testing.assert_allclose(entry["truth"], cube.fields[entry["variable"]][1, 9, level], rtol=1e-4)
        np.testing.assert_allclose(entry["error"], entry["prediction"] - entry["truth"])
        assert entry["lat"].shape + entry["lon"].shape == entry["error"].shape


def test_poisoned_targets_teach_the_opposite(store: Store) -> None:
    """An attack on the data must reach the loss, and the evaluation must not be touched by it."""
    path = store(small_world())
    honest, liar = open_site(path), open_site(path, corrupt_targets=lambda targets: -targets)
    statistics = honest.statistics()
    good, bad = trained(honest, statistics, rounds=4)[0], trained(liar, statistics, rounds=4)[0]
    scores = [honest.evaluate(model, statistics, with_baselines=False)["loss"] for model in (good, bad)]
    assert scores[0] < 1.0 < scores[1]
    assert liar.evaluate(good, statistics, with_baselines=False)["loss"] == scores[0]


def test_poisoned_inputs_are_what_is_trained_on(store: Store) -> None:
    """As in a backdoor; without them reaching the model, both would learn the same."""
    path = store(small_world())
    honest, liar = open_site(path), open_site(path, corrupt_inputs=lambda inputs: torch.zeros_like(inputs))
    statistics = honest.statistics()
    good, blind = trained(honest, statistics, rounds=2)[0], trained(liar, statistics, rounds=2)[0]
    assert any((a != b).any() for a, b in zip(good.parameters(), blind.parameters(), strict=True))
    first = honest.evaluate(good, statistics, with_baselines=False)
    assert liar.evaluate(good, statistics, with_baselines=False) == first


def test_physics_weights_enter_the_loss(store: Store) -> None:
    path = store(small_world())
    plain, weighted = open_site(path), open_site(path, plan(physics={"weights": {"thermal-wind": 10.0}}))
    statistics = plain.statistics()
    (first, without), (second, with_) = trained(plain, statistics), trained(weighted, statistics)
    assert with_[0] > without[0] and not same_weights(first, second)


@pytest.mark.parametrize(
    ("months", "epochs", "role", "words"),
    [
        (2, 2, "train", r"2 epochs of 2 months, which leaves 0 training and 0 held-out samples .*held_out_months = 6"),
        (8, 1, "train", r"1 epochs of 8 months, which leaves 0 training and 6 held-out samples with months_in = 2"),
        (2, 2, "evaluate", r"2 epochs of 2 months; 3 months are needed for one sample \(months_in \+ months_out\)"),
    ],
)
def test_too_short_a_cube_says_what_is_missing(store: Store, months: int, epochs: int, role: Any, words: str) -> None:
    cube = synthetic_world(1, lev=2, lat=4, lon=4, climate_time=months, geological_time=epochs)
    with pytest.raises(TooFewMonths, match=f"^site a: the cube has {words}"):
        open_site(store(cube), role=role).summary()


def test_a_variable_that_is_absent_or_constant_is_named_with_its_site(store: Store) -> None:
    cube = small_world()
    with pytest.raises(VariableNotInCube, match=r"^site a: the cube has no variable 'wap'"):
        open_site(store(cube), plan(task={"variables": ["ta", "wap"]})).summary()
    frozen = build_cube(cube.planet, {**cube.given, "sic": np.zeros_like(cube.given["sic"])}, cube.axes)
    with pytest.raises(ConstantVariable, match=r"^site a: sic never changes .* leave it out of task\.variables"):
        open_site(store(frozen), plan(task={"variables": ["ta", "sic"]})).statistics()


def test_other_levels_than_the_federation_s_are_refused(store: Store) -> None:
    """Scales go by level: with another number of levels they would be those of other heights."""
    statistics = open_site(store(small_world())).statistics()
    task = open_site(store(synthetic_world(1, lev=4, lat=8, lon=8)), name="site b")
    with pytest.raises(LevelsDiffer, match=r"^site b: the cube has 4 levels, the federation's scales 3; bring all"):
        task.evaluate(build_model(task.plan), statistics, with_baselines=False)


def test_several_months_ahead(store: Store) -> None:
    task = open_site(store(small_world()), plan(task={"months_in": 3, "months_out": 2, "season": "none"}))
    statistics = task.statistics()
    model, losses = trained(task, statistics)
    assert task.summary().num_eval_examples == 5
    assert np.isfinite([losses[0], task.evaluate(model, statistics, with_baselines=True)["loss"]]).all()


def test_on_a_real_world_the_ridge_beats_persistence_and_climatology() -> None:
    """What the network has to beat is itself something: about a fifth below persistence."""
    quickstart = load_plan(Path(__file__).parents[3] / "configs" / "quickstart.toml")
    task = open_task(quickstart, Site("earthlike", resolve_bundled("worlds/earthlike")))
    statistics = task.statistics()
    found = task.evaluate(build_model(quickstart), statistics, with_baselines=True)
    assert found["baseline/persistence/loss"] == pytest.approx(1, abs=0.15)
    assert found["baseline/ridge/loss"] < 0.85 * found["baseline/persistence/loss"]
    assert found["baseline/climatology/loss"] > found["baseline/persistence/loss"]
    assert read_cube(task.site.data).fingerprint == task.summary().fingerprint


PRIVACY = {"unit": "world", "epsilon": 8.0, "delta": 1e-5}


def private(**changes: Any) -> Plan:
    return plan(privacy={**PRIVACY, **changes.pop("privacy", {})}, training={"epochs": 5, "batch_size": 2}, **changes)


def test_a_private_world_tells_nothing_of_itself_but_noisy_updates(store: Store) -> None:
    """Statistics are the same whatever the world; the loss stays; epsilon at sample rate 1 is told."""
    ours = open_site(store(small_world(1)), private())
    theirs = open_site(store(with_other_months(small_world(2), slice(0, 6), 0)), private())
    for (key, value), (other_key, other) in zip(ours.statistics().items(), theirs.statistics().items(), strict=True):
        assert key == other_key and np.array_equal(value, other)
    assert set(ours.statistics()) == {"median:field/mean", "median:field/scale", "median:change/scale"}
    summary, model = ours.summary(), build_model(ours.plan)
    assert (summary.num_units, summary.unit) == (1, "world")
    told = [ours.train(model, ours.statistics(), TrainInstruction(number, number)).metrics for number in (1, 2, 3, 4)]
    assert all(set(metrics) == {"epsilon", "delta"} for metrics in told)
    noise = float(summary.description.partition("noise multiplier ")[2].partition(",")[0])
    assert told[-1]["epsilon"] == pytest.approx(epsilon([Event(noise, 1.0, 4 * 5)], 1e-5), rel=1e-3)
    assert 0.998 * 8 <= told[-1]["epsilon"] <= 8
    assert summary.description.endswith(
        "its one world is in every step, hidden by nothing but noise: expect to learn next to nothing from it"
    )
    unseen = open_site(store(small_world()), private(), role="evaluate")
    assert unseen.statistics() == {} and "noise" not in unseen.summary().description
    evaluated = ours.evaluate(model, ours.statistics(), with_baselines=True)
    assert np.isfinite(list(evaluated.values())).all() and not any("ridge" in key for key in evaluated)


@pytest.mark.parametrize("micro_batch", [None, 1, 3])
def test_a_worlds_gradient_is_the_mean_over_all_its_training_months(store: Store, micro_batch: int | None) -> None:
    """Almost without noise a step goes along the gradient of the whole world's loss, one clipping norm far."""
    quiet: dict[str, Any] = {"epsilon": None, "noise_multiplier": 1e-6, "clipping_norm": 0.01}
    quiet |= {"micro_batch": micro_batch} if micro_batch else {}
    still = {"mirror": False, "roll": False}
    given = plan(
        privacy={k: v for k, v in {**PRIVACY, **quiet}.items() if v is not None},
        training={"epochs": 1, "batch_size": 2, "optimizer": "sgd", "learning_rate": 1.0},
        physics={"weights": {"hydrostatic": 0.0, "mass-continuity": 0.02}},
        task=still,
    )
    task, model = open_site(store(small_world()), given), build_model(given)
    assert isinstance(task, DatacubeEmulation)
    statistics, before = task.statistics(), [p.detach().clone() for p in model.parameters()]
    loss, samples = task.loss(task.scales(statistics)), task.samples_to_train_on()
    total = torch.stack([loss(model, stack(task.world, [s], task.scales(statistics))) for s in samples]).mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))])
    task.train(model, statistics, TrainInstruction(1, 1))
    step = torch.cat([(b - p).detach().flatten() for p, b in zip(model.parameters(), before, strict=True)])
    torch.testing.assert_close(step, 0.01 * gradient / gradient.norm(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("unit", ["month", "pixel", "level"])
def test_parts_of_a_world_cannot_be_protected_one_by_one(store: Store, unit: str) -> None:
    with pytest.raises(WrongPrivacyUnit, match=rf"site a: .*privacy\.unit is '{unit}'.*set privacy\.unit = 'world'"):
        open_site(store(small_world()), private(privacy={"unit": unit})).summary()


def test_a_private_world_has_a_budget(store: Store, tmp_path: Path) -> None:
    path, home = store(small_world()), tmp_path / "home"
    home.mkdir()
    task = open_site(path, private(rounds=1), home=home)
    model = build_model(task.plan)
    task.train(model, task.statistics(), TrainInstruction(1, 1))
    with pytest.raises(BudgetSpent, match="left"):
        open_site(path, private(rounds=1, name="another"), home=home).summary()


def test_private_worlds_federate_without_any_statistics_of_theirs(store: Store, tmp_path: Path) -> None:
    """All that a run needs of a world goes through the noise: pooled scales are the public ones."""
    sites = [{"name": name, "data": str(store(small_world(seed)))} for seed, name in enumerate("ab", 1)]
    unseen = {"name": "unseen", "data": str(store(small_world(3))), "role": "evaluate"}
    given = private(participants=[*sites, unseen], rounds=2, engine={"threads": 1})
    result = simulate(given, out=tmp_path / "run")
    assert [(spent.participant, spent.unit) for spent in result.privacy] == [("a", "world"), ("b", "world")]
    assert all(0.99 * 8 <= spent.epsilon <= 8 for spent in result.privacy)
    assert np.isfinite(result.metrics["loss"]) and np.isfinite(result.metrics["unseen/loss"])


def test_fixed_predictions_are_what_is_trained_scored_and_shown(store: Store) -> None:
    path = store(small_world())
    fixed = open_site(path, plan(physics={"fixers": ["mass"]}))
    free = open_site(path)
    statistics = free.statistics()
    model, _ = trained(free, statistics)
    with torch.no_grad():  # so that surface pressure drifts
        model.linear.bias[:, plan().task.options["variables"].index("ps")] += 0.5
    scores = [task.evaluate(model, statistics, with_baselines=False) for task in (free, fixed)]
    assert scores[0]["physics/dry-mass/compliance"] < 0.5 and scores[1]["physics/dry-mass/compliance"] == 1.0
    assert scores[1]["rmse/ps"] < scores[0]["rmse/ps"] and scores[1]["rmse/ua"] == scores[0]["rmse/ua"]
    one, _ = trained(fixed, statistics)
    other, _ = trained(free, statistics)
    assert not same_weights(one, other), "the fixer is part of what is trained"


def test_a_fixer_that_a_plan_can_t_have_is_refused_before_training(store: Store) -> None:
    with pytest.raises(FixerNotEvaluable, match="'energy' is not evaluable: it needs the variables"):
        open_site(store(small_world()), plan(physics={"fixers": ["energy"]}))


def test_the_first_rounds_may_train_on_a_coarser_grid(store: Store) -> None:
    path = store(synthetic_world(1, lev=3, lat=16, lon=16))
    fine, coarse = open_site(path), open_site(path, plan(task={"coarse_rounds": 1}))
    assert isinstance(coarse, DatacubeEmulation)
    statistics = fine.statistics()
    seen: list[torch.Size] = []
    model = build_model(coarse.plan)
    model.register_forward_pre_hook(lambda _m, given: seen.append(given[0].shape[-2:]))
    for number in (1, 2):
        coarse.train(model, statistics, TrainInstruction(number, 7))
    assert seen[0] == (8, 8) and seen[-1] == (16, 16) and len(set(seen)) == 2
    again, other = build_model(fine.plan), build_model(fine.plan)
    fine.train(again, statistics, TrainInstruction(1, 7))
    coarse.train(other, statistics, TrainInstruction(2, 7))
    assert not same_weights(model, again) and coarse.coarse_world().cube.fields["zg"].shape[-2:] == (8, 8)


def test_the_horizon_grows_over_rounds(store: Store) -> None:
    """A first round under a growing horizon learns nothing of later months; the last learns all."""
    path = store(small_world())
    options = {"months_out": 3, "held_out_months": 4}
    growing = open_site(path, plan(task={**options, "horizon_rounds": 2}))
    statistics = growing.statistics()
    model = build_model(growing.plan)
    start = model.linear.bias.detach().clone()
    growing.train(model, statistics, TrainInstruction(1, 7))
    moved = (model.linear.bias - start).reshape(5, 6, 3).abs().amax(dim=(0, 1))
    assert moved[0] > 0 and not moved[1:].any()
    growing.train(model, statistics, TrainInstruction(3, 7))
    assert (model.linear.bias - start).reshape(5, 6, 3).abs().amax(dim=(0, 1)).min() > 0


def test_physics_balanced_by_gradients_trains_and_is_refused_where_units_are_private(store: Store) -> None:
    path, weights = store(small_world()), {"mass-continuity": 0.1}
    fixed = open_site(path, plan(physics={"weights": weights}))
    balanced = open_site(path, plan(physics={"weights": weights, "balance": "gradient", "fixers": ["mass"]}))
    statistics = fixed.statistics()
    one, other = trained(fixed, statistics)[0], trained(balanced, statistics)[0]
    assert not same_weights(one, other)
    private = {"noise_multiplier": 1.0, "delta": 1e-5, "unit": "world"}
    with pytest.raises(BalancedInPrivate, match="has no place beside"):
        open_site(path, plan(physics={"weights": weights, "balance": "gradient"}, privacy=private))
