"""The model bench compares like with like, and its judgements can fail. Its times are not tested."""

import json
from dataclasses import replace

import pytest
import torch

from astrofed.client.tasks.datacube_rollout import RollOut
from astrofed.shared.models.datacube_layout import DatacubeLayout
from astrofed.shared.models.datacube_net import DatacubeNet
from astrofed.simulations.bench import model
from astrofed.simulations.bench.datacube_costs import checkpointing_costs, world_inputs
from astrofed.simulations.bench.datacube_runs import OURS, PEER, PLAIN, UNSEEN, Fit, network, plan_of
from astrofed.simulations.bench.model_result import ModelResult, Part, interval
from astrofed.simulations.bench.result import Target, this_machine
from astrofed.simulations.bench.unet import count, unet_like

ROLLOUT = RollOut((0.7,) * 8, (1.0,) * 8, (1e-4,) * 12, (0.05,) * 12, True, 310.0, 170.0)
KNOWN = {
    "baseline/persistence/loss": 1.0, "baseline/climatology/loss": 1.5, "unseen/baseline/persistence/loss": 1.0,
    "unseen/baseline/climatology/loss": 1.5,
    "unseen/baseline/data/physics/dry-mass/compliance": 0.9,
}  # fmt: skip


def fits(variant: str, errors: tuple[float, ...], compliance: float = 0.9) -> list[Fit]:
    final = {"physics/dry-mass/compliance": compliance, "physics/dry-mass/tolerance": 3e-4}
    rollouts = dict.fromkeys(UNSEEN, ROLLOUT)
    return [
        Fit(variant, seed, 10, error, (error + 0.2, error + 0.1, error), final, rollouts)
        for seed, error in enumerate(errors)
    ]


def test_the_peer_has_as_many_parameters_and_takes_the_same_tensors() -> None:
    plan = plan_of(0, 1, physics=False)
    ours, peer = (network(variant, plan) for variant in (PLAIN, PEER))
    assert count(peer) == pytest.approx(count(ours), rel=0.1)
    layout = DatacubeLayout(variables=("ta", "ps"), months_in=2, months_out=2)
    small, like = DatacubeNet(layout, base_features=8, coarse_features=8), unet_like(layout, 5000)
    given = [each.example({"lat": 8, "lon": 8, "lev": 3}, seed=0) for each in small.signature()]
    assert like(*given).shape == small(*given).shape
    assert not like(*given).any(), "it begins at persistence, as ours nearly does"


def test_physics_is_the_only_difference_between_our_two() -> None:
    with_, without = plan_of(3, 2, physics=True), plan_of(3, 2, physics=False)
    assert with_.physics.fixers == ("mass", "hydrostatic", "radiation") and not without.physics.weights
    assert with_.model_copy(update={"physics": without.physics}) == without
    one, other = network(OURS, with_), network(PLAIN, without)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("curve", "error", "expected"),
    [([0.9, 0.8, 0.7], 0.75, 2.5), ([0.9, 0.8, 0.7], 0.9, 1.0), ([0.9, 0.8, 0.7], 0.5, 3.0), ([0.7], 0.8, 1.0)],
)
def test_when_a_curve_reaches_an_error(curve: list[float], error: float, expected: float) -> None:
    assert model.epochs_until(curve, error) == pytest.approx(expected)


def test_intervals_follow_student() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.half == pytest.approx(4.303 / 3**0.5)
    assert str(interval([0.5])) == "0.5 (one seed)"


def test_targets_are_met_where_they_should_be_and_only_there() -> None:
    ours, plain = fits(OURS, (0.60, 0.601, 0.602)), fits(PLAIN, (0.70, 0.701, 0.702))
    assert [t.met for t in model.convergence(ours, plain).targets] == [True]  # a third of the epochs saved
    assert [t.met for t in model.convergence(plain, ours).targets] == [False]
    assert [t.met for t in model.compliance(ours, plain, KNOWN).targets] == [True]
    assert [t.met for t in model.compliance(fits(OURS, (0.6,), 0.8), plain, KNOWN).targets] == [False]
    variants = {OURS: ours, PLAIN: plain, PEER: fits(PEER, (0.8, 0.801, 0.803))}
    assert [t.met for t in model.skill(variants, KNOWN, 1e-3).targets] == [True, True, True]
    beaten = KNOWN | {"unseen/baseline/climatology/loss": 0.6}
    assert [t.met for t in model.skill(variants, beaten, 1e-3).targets] == [True, True, False]
    close = variants | {PEER: fits(PEER, (0.60, 0.603, 0.606))}
    assert [t.met for t in model.skill(close, KNOWN, 1e-3).targets] == [False, True, True]
    assert [t.met for t in model.rolled(ours).targets] == [True] * 4


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"finite": False}, 0), ({"warmest": 500.0}, 0), ({"mass": (0.01,) * 12}, 1), ({"energy": (0.2,) * 12}, 2),
        ({"error": (1.5,) * 8}, 3),
    ],
)  # fmt: skip
def test_an_unstable_rollout_is_seen(change: dict[str, object], missed: int) -> None:
    ours = fits(OURS, (0.6, 0.6))
    broken = {UNSEEN[0]: ROLLOUT, UNSEEN[1]: replace(ROLLOUT, **change)}  # type: ignore[arg-type]
    ours[1] = replace(ours[1], rollouts=broken)
    assert [t.met for t in model.rolled(ours).targets] == [index != missed for index in range(4)]


def test_checkpointing_is_measured_and_stands_beside_what_did_not_run() -> None:
    part = checkpointing_costs(1, quick=True)
    assert part.targets[0].met and part.data["peaks"]["kept"] > 2 * part.data["peaks"]["recomputed"]
    gpu = Part("On a GPU", ("computed as",), (), (Target("bf16 takes half of the time", None, None),), "")
    result = ModelResult("title", this_machine(), (part, gpu))
    told = json.loads(json.dumps(result.to_dict()))
    assert told["met"] in (None, False) and len(told["parts"]) == 2
    text = result.markdown()
    assert "| activations | peak MiB | CPU ms |" in text and "not evaluable: bf16" in text
    assert result.table() is not None


def test_inputs_have_levels_in_order() -> None:
    state, forcing = world_inputs(DatacubeNet(DatacubeLayout(), base_features=8, coarse_features=8))
    assert state.shape[0] == forcing.shape[0] == 1 and forcing[0, 4, 0, :, 0, 0].diff().min() > 0
