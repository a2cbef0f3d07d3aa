"""The multi-modal network: masks that mask, blocks that stay untouched, members that differ."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from astrofed.shared.models.base import build_model
from astrofed.shared.models.surrogate_layout import MODALITIES, PLACE, SCALARS, SERIES, TARGETS, Observations
from astrofed.shared.models.surrogate_net import LEAST_SPREAD, SurrogateNet, SurrogateShapeError
from astrofed.shared.plan import PlanError, load_plan

PLAN: dict[str, Any] = {
    "name": "net",
    "mode": "multimodal",
    "task": {"name": "surrogate"},
    "model": {"name": "surrogate", "width": 16, "heads": 2, "members": 2},
    "participants": [{"name": "a", "data": "bundled:worlds/earthlike"}],
}


def net(**model: Any) -> SurrogateNet:
    built = build_model(load_plan({**PLAN, "model": {**PLAN["model"], **model}}))
    assert isinstance(built, SurrogateNet)
    with torch.no_grad():  # the direct path begins at zero, which would hide it from tests
        for name, weight in built.named_parameters():
            if ".direct." in name:
                weight.normal_(std=0.1)
    return built.eval()


def seen(batch: int = 5, present: tuple[str, ...] = MODALITIES) -> Observations:
    draw = torch.Generator().manual_seed(batch)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=draw)

    mask = torch.tensor([name in present for name in MODALITIES]).expand(batch, -1)
    return Observations(
        normal(PLACE), normal(5, 10, 8), normal(len(SCALARS)), normal(2, 30), normal(len(SERIES), 3), mask
    )


def test_shapes_and_spreads() -> None:
    mean, spread = net()(seen())
    assert mean.shape == spread.shape == (2, 5, len(TARGETS))
    assert bool((spread > LEAST_SPREAD).all())


def test_members_differ_and_each_seed_gives_others() -> None:
    mean, _ = net()(seen())
    assert not torch.allclose(mean[0], mean[1], atol=1e-3)


@pytest.mark.parametrize("name", MODALITIES)
def test_what_is_absent_is_not_looked_at(name: str) -> None:
    model, given = net(), seen(present=tuple(other for other in MODALITIES if other != name))
    changed = replace(given, **{name: torch.randn_like(getattr(given, name)) * 9})
    for one, other in zip(model(given), model(changed), strict=True):
        assert torch.equal(one, other)
    full = seen()
    assert not torch.allclose(model(full)[0], model(replace(full, **{name: getattr(changed, name)}))[0], atol=1e-4)


def test_masks_are_each_samples_own() -> None:
    model, given = net(), seen()
    mixed = given.seen(given.present & (torch.arange(5) % 2 == 0)[:, None] | torch.tensor([True, False, False, False]))
    mean = model(mixed)[0]
    for row in range(5):
        torch.testing.assert_close(model(mixed.at(torch.tensor([row])))[0][:, 0], mean[:, row], atol=1e-5, rtol=1e-4)


def test_nothing_present_still_gives_a_guess() -> None:
    mean, spread = net()(seen(present=()))
    assert bool(torch.isfinite(mean).all() and torch.isfinite(spread).all())


@pytest.mark.parametrize("name", MODALITIES)
def test_an_absent_modality_has_no_gradient(name: str) -> None:
    model = net().train()
    mean, spread = model(seen(present=tuple(other for other in MODALITIES if other != name)))
    (mean.sum() + spread.sum()).backward()
    for key, weight in model.named_parameters():
        if f"encoders.{name}." in key:
            assert weight.grad is None
        elif key != "balance":
            assert weight.grad is not None, key


def test_equal_sectors_give_finite_gradients() -> None:
    model, given = net().train(), seen()
    given = replace(given, cube=torch.zeros_like(given.cube))
    model(given)[0].sum().backward()
    assert all(bool(torch.isfinite(w.grad).all()) for w in model.parameters() if w.grad is not None)


@pytest.mark.parametrize("name", ["place", "cube", "scalars", "spectrum", "series", "present"])
def test_a_wrong_shape_is_named(name: str) -> None:
    given = seen()
    with pytest.raises(SurrogateShapeError, match=name):
        net()(replace(given, **{name: getattr(given, name)[:, :1, ...].squeeze(1)}))


def test_any_grid_will_do() -> None:
    given = seen()
    for shape in ((5, 1, 1), (5, 3, 2), (5, 40, 64)):
        mean, _ = net()(replace(given, cube=torch.randn(5, *shape), spectrum=torch.randn(5, 2, 7)))
        assert bool(torch.isfinite(mean).all())


def test_the_same_plan_gives_the_same_network() -> None:
    one, other = (build_model(load_plan(PLAN)).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model", {"name": "surrogate", "width": 30, "heads": 4}, "multiple of model.heads"),
        ("task", {"name": "planets"}, "has no modalities"),
        ("task", {"name": "surrogate", "modalities": {"b": ["cube"]}}, "no participant is named 'b'"),
        ("task", {"name": "surrogate", "modalities": {"a": ["cubes"]}}, "did you mean 'cube'"),
        ("task", {"name": "surrogate", "modalities": {"a": []}}, "at least one"),
        ("task", {"name": "surrogate", "variables": ["ts"]}, "no variable with levels"),
    ],
)
def test_what_makes_no_sense_is_refused(key: str, value: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        build_model(load_plan({**PLAN, key: value}))
