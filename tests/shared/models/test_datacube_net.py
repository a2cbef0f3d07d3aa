"""The datacube network: its axes, its symmetries, what it must not couple, and that it stays what it was."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from astrofed.shared.arrays import from_state_dict, load_into
from astrofed.shared.models.base import build_model
from astrofed.shared.models.datacube_layout import FIXED_FORCING, SIGMA, DatacubeLayout
from astrofed.shared.models.datacube_net import DatacubeNet, DatacubeShapeError
from astrofed.shared.plan import PlanError, load_plan

LAYOUT = DatacubeLayout(variables=("ta", "ua", "ps"), months_in=2, months_out=2)


def network(layout: DatacubeLayout = LAYOUT, *, depth: int = 1) -> DatacubeNet:
    """A small network whose every weight is drawn, so that nothing is hidden by a start at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = DatacubeNet(layout, base_features=8, coarse_features=12, depth=depth)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return net.requires_grad_(False)


def inputs(
    batch: int, epochs: int, lev: int, lat: int, lon: int, layout: DatacubeLayout = LAYOUT
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(batch, len(layout.variables), layout.months_in, epochs, lev, lat, lon, generator=generator)
    forcing = torch.randn(batch, layout.forcings, epochs, lev, lat, lon, generator=generator)
    forcing[:, SIGMA] = torch.linspace(0.05, 0.98, lev)[:, None, None]
    return state, forcing


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    epochs=st.integers(1, 3),
    lev=st.integers(1, 3),
    lat=st.integers(1, 9),
    lon=st.integers(1, 9),
    months_in=st.integers(1, 3),
    months_out=st.integers(1, 3),
)
def test_any_grid_and_any_number_of_months_and_epochs(
    batch: int, epochs: int, lev: int, lat: int, lon: int, months_in: int, months_out: int
) -> None:
    layout = DatacubeLayout(variables=("ta", "ps"), months_in=months_in, months_out=months_out)
    out = network(layout)(*inputs(batch, epochs, lev, lat, lon, layout))
    assert out.shape == (batch, 2, months_out, epochs, lev, lat, lon)
    assert out.isfinite().all()


@pytest.mark.parametrize(("lon", "step"), [(16, 4), (8, 4), (6, 2), (5, 1), (7, 1), (1, 1)])
def test_there_is_no_seam_in_longitude(lon: int, step: int) -> None:
    """A world that is turned is predicted turned: by multiples of the trunk's stride, or of what divides the grid."""
    net, (state, forcing) = network(), inputs(1, 2, 3, 6, lon)
    out = net(state, forcing)
    for cells in range(step, lon + 1, step):
        close(net(state.roll(cells, -1), forcing.roll(cells, -1)), out.roll(cells, -1))


def test_samples_do_not_see_each_other() -> None:
    net, (state, forcing) = network(), inputs(3, 2, 3, 8, 8)
    together = net(state, forcing)
    state[1:] *= -100
    close(net(state, forcing)[0], together[0])
    close(net(state[:1], forcing[:1])[0], together[0])


def test_epochs_may_stand_in_any_order_and_see_each_other() -> None:
    net, (state, forcing) = network(), inputs(2, 3, 3, 8, 8)
    out = net(state, forcing)
    order = [2, 0, 1]
    close(net(state[:, :, :, order], forcing[:, :, order]), out[:, :, :, order])
    alone = net(state[:, :, :, :1], forcing[:, :, :1])
    assert not torch.allclose(alone, out[:, :, :, :1], atol=1e-3), "one epoch learns from another's state"


def test_an_epoch_given_twice_is_predicted_as_once() -> None:
    net, (state, forcing) = network(), inputs(2, 1, 3, 8, 8)
    close(net(state.repeat_interleave(2, 3), forcing.repeat_interleave(2, 2))[:, :, :, :1], net(state, forcing))


def test_training_mode_changes_nothing() -> None:
    """Batch statistics would: they also leave the site with the weights."""
    net, given_ = network(), inputs(2, 2, 3, 8, 8)
    assert torch.equal(net.train()(*given_), net.eval()(*given_))
    assert not dict(net.named_buffers())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, f: (s[0], f), r"state is \[3, 2, .*expected \[batch, variable, .*\] with 3 variables and 2 input"),
        (lambda s, f: (s[:, :2], f), r"state is \[2, 2, 2, .*3 variables"),
        (lambda s, f: (s[:, :, :1], f), r"state is \[2, 3, 1, .*2 input months"),
        (lambda s, f: (s, f[:, :-1]), r"forcing is \[2, 15, .*expected \(2, 16, 2, 3, 8, 8\)"),
        (lambda s, f: (s, f[..., :-1]), r"forcing is .*7\]; for state"),
        (lambda s, f: (s, f[:1]), r"forcing is \[1, "),
    ],
)
def test_a_wrong_shape_is_told_with_what_was_expected(change: Any, words: str) -> None:
    with pytest.raises(DatacubeShapeError, match=words):
        network()(*change(*inputs(2, 2, 3, 8, 8)))


def plan(seed: int = 5) -> Any:
    return load_plan(
        {
            "name": "t",
            "seed": seed,
            "task": {"name": "datacube", "variables": ["ta", "ua", "ps"], "months_in": 2},
            "model": {"name": "datacube-net", "base_features": 8, "coarse_features": 12, "depth": 2},
            "participants": [{"name": "a", "data": "a"}],
        }
    )


def test_the_plan_s_seed_alone_draws_the_weights() -> None:
    before = torch.random.get_rng_state()
    first, second, other = build_model(plan()), build_model(plan()), build_model(plan(seed=6))
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's generator is left as it was"
    weights = [model.state_dict()["stem.conv.weight"] for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_new_network_predicts_little_change() -> None:
    layout = DatacubeLayout.of_plan(plan())
    out = build_model(plan())(*inputs(2, 2, 3, 8, 8, layout))
    assert out.std() < 0.1


def test_every_weight_learns() -> None:
    """A part that no gradient reaches is dead weight on the wire."""
    net = network(depth=2).requires_grad_()
    net(*inputs(1, 2, 3, 8, 8)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_weights_survive_the_wire() -> None:
    net, copy, given_ = network(), DatacubeNet(LAYOUT, base_features=8, coarse_features=12), inputs(1, 2, 3, 8, 8)
    load_into(copy, from_state_dict(net.state_dict()))
    with torch.no_grad():
        assert torch.equal(copy(*given_), net(*given_))


def test_the_network_stays_what_it_was() -> None:
    """A refactoring that alters numerics shows here; a change that is meant to must say so by changing these."""
    net, (state, forcing) = network(), inputs(2, 2, 3, 6, 8)
    out = net(state, forcing)
    assert sum(p.numel() for p in net.parameters()) == 13896
    found = [out.mean(), out.std(), out[0, 0, 0, 0, 0, 0, 0], out[1, 2, 1, 1, 2, 5, 7]]
    assert [float(value) for value in found] == pytest.approx([0.140021, 2.826259, 1.695779, -0.603999], rel=1e-3)


AGED = DatacubeLayout(variables=("ta", "ua", "ps"), months_in=2, months_out=2, ages=True)


def full(seed: int = 3) -> DatacubeNet:
    """Every option on, every weight drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DatacubeNet(AGED, base_features=8, coarse_features=12, film=True, across=True)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return net.requires_grad_(False)


def aged_inputs(epochs: int, ages: list[float], lon: int = 16) -> tuple[Tensor, Tensor]:
    state, forcing = inputs(1, epochs, 3, 8, lon, AGED)
    forcing[:, -1] = torch.tensor(ages)[:, None, None, None]
    return state, forcing


def test_with_all_options_there_is_still_no_seam_and_no_order_of_epochs() -> None:
    net, (state, forcing) = full(), aged_inputs(3, [0.0, 0.5, 4.0])
    out = net(state, forcing)
    close(net(state.roll(4, -1), forcing.roll(4, -1)), out.roll(4, -1))
    order = [2, 0, 1]
    close(net(state[:, :, :, order], forcing[:, :, order]), out[:, :, :, order])


def test_epochs_far_apart_in_years_see_less_of_each_other() -> None:
    net = full()
    reach = []
    for years in (0.1, 10.0, 1000.0):
        state, forcing = aged_inputs(2, [0.0, years])
        other = state.clone()
        other[:, :, :, 1] += 1.0
        reach.append(float((net(other, forcing) - net(state, forcing))[:, :, :, 0].abs().mean()))
    assert reach[0] > 1.5 * reach[1] > 0 and reach[2] < 1e-4


def test_a_planet_s_gravity_reaches_every_cell_alike() -> None:
    """Only through the modulation: the trunk without it is told gravity as well, but adds it to features."""
    plain, film = (
        DatacubeNet(AGED, base_features=8, coarse_features=12),
        DatacubeNet(AGED, base_features=8, coarse_features=12, film=True),
    )
    film.load_state_dict(plain.state_dict(), strict=False)
    given_ = aged_inputs(2, [0.0, 1.0])
    with torch.no_grad():
        assert torch.equal(plain(*given_), film(*given_)), "it begins as the identity"
        for block in (*film.encode, *film.middle, *film.decode):
            torch.nn.init.normal_(block.film.map.weight, std=0.5)
        heavier = given_[1].clone()
        heavier[:, FIXED_FORCING.index("gravity")] += 1.0
        assert not torch.allclose(film(given_[0], heavier), plain(given_[0], heavier), atol=1e-3)


def test_every_weight_of_every_option_learns() -> None:
    net = full().requires_grad_()
    net(*aged_inputs(2, [0.0, 1.0])).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("model", "physics", "words"),
    [
        ({"n_input_vars": 4}, {}, r"model.n_input_vars = 4: task.variables names 3; leave the key out"),
        ({"n_output_vars": 1}, {}, r"model.n_output_vars = 1: task.variables names 3"),
        ({"use_physics_constraints": True}, {}, r"= true, but \[physics\] has neither weights nor fixers"),
        ({"use_physics_constraints": False}, {"weights": {"mass-continuity": 0.1}}, r"= false, but \[physics\] has"),
    ],
)
def test_what_users_say_twice_has_to_agree(model: dict[str, Any], physics: dict[str, Any], words: str) -> None:
    told = plan().model_dump()
    told = {"name": "t", "task": told["task"], "participants": [{"name": "a", "data": "a"}], "physics": physics}
    with pytest.raises(PlanError, match=words):
        build_model(load_plan({**told, "model": {"name": "datacube-net", **model}}))
    agreeing = {"n_input_vars": 3, "n_output_vars": 3, "use_physics_constraints": bool(physics), "film": True}
    built = build_model(load_plan({**told, "model": {"name": "datacube-net", "poles": "across", **agreeing}}))
    assert isinstance(built, DatacubeNet) and built.film and built.across
