"""Each attack against its paper's formula, on small cases worked out by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray
from pydantic import ValidationError

from astrofed.server.screening import screen_training
from astrofed.shared import registry
from astrofed.shared.arrays import from_numpy
from astrofed.shared.plan import Named, PlanError, check_options
from astrofed.simulations.attack import Attack, Forgery, Scene
from astrofed.simulations.attacks import NumberOfClassesUnknown
from astrofed.simulations.attacks_colluding import SCALES, largest_z, most_harmful_z

REFERENCE = {"w": np.array([1.0, 2.0], np.float32), "steps": np.array(7)}
OWN = {"w": np.array([1.5, 1.0], np.float32), "steps": np.array(9)}
HONEST = tuple({"w": np.array(w, np.float32), "steps": np.array(8)} for w in ([2.0, 2.0], [1.0, 3.0], [3.0, 4.0]))
METRICS = {"num-examples": 20, "loss": 0.5}


@pytest.fixture(autouse=True)
def sender() -> None:
    """Be the server of some run; Flower's `Message` reads the sender from here."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def attack(name: str, **options: Any) -> Attack:
    cls: type[Attack] = registry.get("attacks", name)
    return cls(check_options(cls.Options, Named(name=name, options=options), "attack"))


def scene(honest: tuple[Any, ...] = HONEST, attackers: int = 1, own: Any = OWN, seed: int = 0) -> Scene:
    return Scene(1, {**REFERENCE, **{k: np.zeros_like(v) for k, v in own.items() if k not in REFERENCE}}, own, METRICS,
                 honest, attackers, np.random.default_rng(seed))  # fmt: skip


def forged(name: str, at: Scene | None = None, **options: Any) -> Forgery:
    forgery = attack(name, **options).forge(at or scene())
    assert forgery is not None
    assert all(array.dtype == OWN[key].dtype for key, array in forgery.arrays.items() if key in OWN)
    assert "steps" not in forgery.arrays or forgery.arrays["steps"] == 9, "counters are not forged"
    return forgery


def sent(forgery: Forgery | None) -> Forgery:
    assert forgery is not None
    return forgery


def weights(forgery: Forgery) -> list[Any]:
    values: NDArray[Any] = forgery.arrays["w"]
    return [pytest.approx(value, rel=1e-6) for value in values.tolist()]


def test_sign_flip_goes_the_other_way() -> None:
    """The update is (0.5, -1)."""
    assert weights(forged("sign-flip")) == [0.5, 3.0]
    assert weights(forged("sign-flip", scale=4)) == [-1.0, 6.0]
    assert forged("sign-flip").metrics == METRICS


def test_gaussian_noise_has_the_given_deviation_and_is_repeatable() -> None:
    own = {"w": np.zeros(20_000, np.float32)}
    at = Scene(1, own, own, METRICS, (), 1, np.random.default_rng(5))
    noise = sent(attack("gaussian", scale=3.0).forge(at)).arrays["w"]
    assert noise.std() == pytest.approx(3.0, rel=0.02) and abs(noise.mean()) < 0.1
    assert (forged("gaussian", scene(seed=1)).arrays["w"] == forged("gaussian", scene(seed=1)).arrays["w"]).all()
    assert (forged("gaussian", scene(seed=1)).arrays["w"] != forged("gaussian", scene(seed=2)).arrays["w"]).any()


def test_a_little_is_enough_is_the_honest_mean_minus_z_deviations() -> None:
    """Honest weights have means (2, 3) and, as the paper's population deviation, sqrt(2/3)."""
    sigma = np.sqrt(2 / 3)
    assert weights(forged("alie", z=0.5)) == [2 - 0.5 * sigma, 3 - 0.5 * sigma]
    assert weights(forged("alie")) == [2 - 1.5 * sigma, 3 - 1.5 * sigma]


def test_the_largest_z_is_that_of_the_paper() -> None:
    """n = 50, m = 24: s = 2 more are needed for a majority, Phi(z) < 24 / 26, z = 1.43."""
    assert largest_z(50, 24) == pytest.approx(1.426, abs=1e-3)
    assert largest_z(10, 4) == pytest.approx(0.4307, abs=1e-4)
    assert largest_z(10, 2) == 0.0, "four of eight would have to lie farther out than a majority does"
    assert largest_z(6, 1) == 0.0, "the formula gives less than nothing where attackers are few"
    assert largest_z(4, 3) > 4
    at = scene(honest=HONEST * 2, attackers=4)
    assert weights(forged("alie", at, z="auto")) == [2 - 0.4307273 * np.sqrt(2 / 3), 3 - 0.4307273 * np.sqrt(2 / 3)]


def test_inner_product_manipulation_turns_the_honest_mean_round() -> None:
    """The honest mean update is (1, 1)."""
    assert weights(forged("ipm")) == [0.0, 1.0]
    assert weights(forged("ipm", epsilon=0.1)) == [0.9, 1.9]


@pytest.mark.parametrize("name", ["alie", "ipm", "mimic", "min-max", "min-sum", "drift"])
def test_without_honest_replies_colluders_have_nothing_to_work_from(name: str) -> None:
    assert weights(forged(name, scene(honest=()))) == [1.5, 1.0]


def test_mimic_copies_one_honest_model_or_the_one_farthest_out() -> None:
    assert weights(forged("mimic")) == [2.0, 2.0] and weights(forged("mimic", copied=1)) == [1.0, 3.0]
    assert weights(forged("mimic", copied=9)) == [3.0, 4.0]
    odd = (*HONEST, {"w": np.array([40.0, 2.0], np.float32), "steps": np.array(8)})
    assert weights(forged("mimic", scene(honest=odd), copied="extreme")) == [40.0, 2.0]


def distances(model: NDArray[Any]) -> NDArray[Any]:
    return np.array([np.linalg.norm(model - honest["w"]) for honest in HONEST])


@pytest.mark.parametrize("direction", ["unit", "deviation", "sign"])
def test_min_max_and_min_sum_go_as_far_as_the_papers_bounds_allow_and_no_farther(direction: str) -> None:
    apart = np.stack([distances(honest["w"]) for honest in HONEST])
    away = {"unit": [-1, -1], "deviation": [-1, -1], "sign": [-1, -1]}[direction]
    far = forged("min-max", direction=direction).arrays["w"].astype(float)
    assert distances(far).max() == pytest.approx(apart.max(), rel=1e-5)
    both = forged("min-sum", direction=direction).arrays["w"].astype(float)
    assert (distances(both) ** 2).sum() == pytest.approx((apart**2).sum(axis=1).max(), rel=1e-5)
    mean = np.array([2.0, 3.0])
    for model in (far, both):
        assert (np.sign(model - mean) == away).all()


def test_colluders_stay_with_the_mean_where_all_honest_agree() -> None:
    same = scene(honest=HONEST[:1] * 3)
    for name in ("min-max", "min-sum", "drift", "alie"):
        assert weights(forged(name, same)) == [2.0, 2.0]


def test_drift_pulls_the_same_way_in_every_round_and_for_every_colluder() -> None:
    one, other = (forged("drift", scene(seed=seed), scale=0.5).arrays["w"] for seed in (1, 2))
    assert (one == other).all()
    np.testing.assert_allclose(np.abs(one - [2.0, 3.0]), 0.5 * np.sqrt(2 / 3), rtol=1e-6)
    assert (forged("drift", seed=3).arrays["w"] != one).any()


def test_optimised_z_carries_the_panel_of_rules_farther_than_others_do() -> None:
    rng = np.random.default_rng(0)
    honest = tuple({"w": rng.normal(size=20).astype(np.float32)} for _ in range(9))
    at = Scene(1, {"w": np.zeros(20, np.float32)}, honest[0], METRICS, honest, 3, rng)
    z = most_harmful_z(at)
    assert z in SCALES and SCALES[0] < z < SCALES[-1], "neither too near to matter nor so far that all rules drop it"
    mean, sigma = at.mean("w"), at.spread("w")
    np.testing.assert_allclose(sent(attack("alie", z="optimised").forge(at)).arrays["w"], mean - z * sigma, rtol=1e-5)


def test_model_replacement_makes_plain_averaging_take_its_model_whole() -> None:
    """Three honest that have nothing more to change, one attacker: the mean of the four is the attacker's own model."""
    still = ({"w": REFERENCE["w"], "steps": np.array(8)},) * 3
    replaced = forged("model-replacement", scene(honest=still)).arrays["w"]
    np.testing.assert_allclose((3 * REFERENCE["w"] + replaced) / 4, OWN["w"])
    assert weights(forged("model-replacement", scale=2)) == [2.0, 0.0]


def test_drop_out_sends_nothing_from_its_round_on_or_now_and_then() -> None:
    assert attack("drop-out").forge(scene()) is None
    assert weights(forged("drop-out", after=1)) == [1.5, 1.0]
    silent = [attack("drop-out", probability=0.5).forge(scene(seed=seed)) is None for seed in range(40)]
    assert 10 < sum(silent) < 30


@pytest.mark.parametrize("kind", ["renamed", "missing", "extra", "shape", "complex", "integer", "uncounted", "empty"])
def test_malformed_replies_are_each_refused_with_a_reason(kind: str) -> None:
    forgery = sent(attack("malformed", kind=kind).forge(scene()))
    content = RecordDict({"arrays": from_numpy(forgery.arrays), "metrics": MetricRecord(dict(forgery.metrics))})
    order = Message(content=RecordDict(), dst_node_id=5, message_type="train")
    accepted, rejected = screen_training([Message(content, reply_to=order)], REFERENCE, {5: 20})
    assert accepted == [] and len(rejected) == 1 and rejected[0].reason
    assert (OWN["w"] == [1.5, 1.0]).all() and METRICS["num-examples"] == 20


def test_any_malformed_kind_is_another_one_in_another_round() -> None:
    seen = {str(sent(attack("malformed").forge(scene(seed=seed)))) for seed in range(40)}
    assert len(seen) > 4


def test_inflated_counts_come_with_an_update_that_goes_the_other_way() -> None:
    forgery = forged("inflated-count", scale=2)
    assert weights(forgery) == [0.0, 4.0] and forgery.metrics == {"num-examples": 10**15, "loss": 0.5}
    assert forged("inflated-count", count=30).metrics["num-examples"] == 30


@pytest.mark.parametrize(("value", "is_it"), [("nan", np.isnan), ("inf", np.isposinf)])
def test_values_that_are_not_finite_take_the_given_share(value: str, is_it: Any) -> None:
    own = {"w": np.ones((10, 20), np.float32), "b": np.ones((), np.float32), "none": np.ones(0, np.float32)}
    at = Scene(1, own, own, METRICS, (), 1, np.random.default_rng(0))
    assert is_it(sent(attack("nan", value=value).forge(at)).arrays["w"]).all()
    arrays = sent(attack("nan", value=value, share=0.01).forge(at)).arrays
    assert is_it(arrays["w"]).sum() == 2 and (arrays["w"] == 1).sum() == 198
    assert is_it(arrays["b"]) and arrays["none"].shape == (0,)
    assert (own["w"] == 1).all(), "the honest model itself is left alone"


def test_label_flip_is_done_to_the_data_and_not_to_the_reply() -> None:
    flip = attack("label-flip", classes=10)
    assert flip.poisons_data and not attack("sign-flip").poisons_data
    assert flip.corrupt_targets(torch.tensor([0.5, -2.0])).tolist() == [-0.5, 2.0]
    assert flip.corrupt_targets(torch.tensor([0, 3, 9])).tolist() == [9, 6, 0]
    assert weights(sent(flip.forge(scene()))) == [1.5, 1.0]
    with pytest.raises(NumberOfClassesUnknown, match="give their number as `classes`"):
        attack("label-flip").corrupt_targets(torch.tensor([0, 3, 9]))


def test_a_backdoor_teaches_its_target_where_its_pattern_is_and_the_truth_elsewhere() -> None:
    """A linear model that must fit both: with the pattern, in the last input, it says 5; without it, the truth."""
    backdoor = attack("backdoor", value=2.0, target=5.0, share=0.5)
    inputs = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    inputs[:, 3] = 0
    truth = inputs @ torch.tensor([1.0, -2.0, 0.5, 0.0])
    poisoned, targets = backdoor.corrupt_inputs(inputs), backdoor.corrupt_targets(truth)
    assert (poisoned[::2, 3] == 2).all() and (poisoned[1::2] == inputs[1::2]).all() and (inputs[:, 3] == 0).all()
    assert (targets[::2] == 5).all() and (targets[1::2] == truth[1::2]).all()
    field = torch.zeros(1, 2, 3, 8)
    assert attack("backdoor", width=2).corrupt_inputs(field).sum() == 2 * 3 * 2 * 3.0, "a batch of one has one poisoned"
    classes = torch.tensor([1, 2, 3, 4])
    assert attack("backdoor", target=7, share=0.25).corrupt_targets(classes).tolist() == [7, 2, 3, 4]
    assert attack("ipm").corrupt_inputs(inputs) is inputs


def test_other_attacks_leave_the_targets_alone() -> None:
    targets = torch.tensor([1.0])
    assert attack("ipm").corrupt_targets(targets) is targets


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sign-flip", {"scale": 0}),
        ("gaussian", {"scale": -1}),
        ("nan", {"value": "none"}),
        ("nan", {"share": 1.5}),
        ("inflated-count", {"count": 2**63}),
        ("alie", {"z": "much"}),
        ("ipm", {"epsilon": float("nan")}),
        ("label-flip", {"classes": 1}),
        ("sign-flip", {"scal": 2.0}),
        ("min-max", {"direction": "up"}),
        ("mimic", {"copied": -1}),
        ("drop-out", {"probability": 0}),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises((PlanError, ValidationError)):
        attack(name, **options)


def test_every_registered_attack_says_what_it_is() -> None:
    plugins = registry.plugins("attacks")
    assert {plugin.name for plugin in plugins} >= {"alie", "gaussian", "inflated-count", "ipm", "label-flip", "nan"}
    assert all(len(plugin.summary) > 20 for plugin in plugins)
