"""Layers on the sphere: what they see round the globe, across levels and over epochs, and what they must not see."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from astrofed.shared.models.layers import (
    Downsample,
    EpochMixing,
    SigmaLinear,
    SphereBlock,
    SphereConv,
    Upsample,
    ZonalMixing,
    group_norm,
    pad_sphere,
)


def field(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(layer: type[nn.Module], *sizes: int) -> nn.Module:
    """A layer with weights from a fixed seed; those that start at zero are drawn too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = layer(*sizes)
        for parameter in module.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.3)
    return module.requires_grad_(False)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_padding_goes_round_in_longitude_and_repeats_the_edge_elsewhere() -> None:
    x = torch.arange(8.0).reshape(1, 1, 1, 2, 4)
    padded = pad_sphere(x, 1, 1, 1)
    assert padded.shape == (1, 1, 3, 4, 6)
    assert padded[0, 0, 0].tolist() == padded[0, 0, 1].tolist() == padded[0, 0, 2].tolist()
    assert padded[0, 0, 1].tolist() == [
        [3, 0, 1, 2, 3, 0],
        [3, 0, 1, 2, 3, 0],
        [7, 4, 5, 6, 7, 4],
        [7, 4, 5, 6, 7, 4],
    ]


@pytest.mark.parametrize("batch", [1, 2])
def test_each_tap_of_a_convolution_looks_where_it_should(batch: int) -> None:
    """The level above, the row to the north and the cell to the west, for a single sample and for several."""
    conv = seeded(SphereConv, 1, 1)
    assert isinstance(conv, SphereConv) and conv.conv.bias is not None
    conv.conv.weight.zero_()
    conv.conv.bias.zero_()
    conv.conv.weight[0, 0, 0, 0, 0] = 1.0
    x = field(batch, 1, 3, 4, 5)
    close(conv(x)[:, :, 1:, 1:], x.roll(1, -1)[:, :, :-1, :-1])
    close(conv(x)[:, :, 0, 0], x.roll(1, -1)[:, :, 0, 0])


def test_a_sample_alone_is_convolved_as_among_others() -> None:
    """A single sample takes another path through torch: it must be the same sums, and the same gradients."""
    conv = seeded(SphereConv, 5, 7).requires_grad_()
    x = field(2, 5, 4, 6, 9)
    alone, among = conv(x[:1]), conv(x)[:1]
    close(alone, among)
    close(*(torch.autograd.grad(out.square().sum(), conv.conv.weight, retain_graph=True)[0] for out in (alone, among)))


@pytest.mark.parametrize(
    "make", [(SphereConv, 8, 8), (ZonalMixing, 8), (SphereBlock, 8)], ids=lambda make: make[0].__name__
)
@settings(max_examples=10, deadline=None)
@given(cells=st.integers(-20, 20), batch=st.integers(1, 2))
def test_there_is_no_seam_in_longitude(make: tuple[type[nn.Module], int], cells: int, batch: int) -> None:
    layer, x = seeded(*make), field(batch, 8, 3, 5, 7)
    epochs = (batch,) if make[0] is SphereBlock else ()
    close(layer(x.roll(cells, -1), *epochs), layer(x, *epochs).roll(cells, -1))


@pytest.mark.parametrize("make", [(Downsample, 6, 4), (Upsample, 6, 4)], ids=lambda make: make[0].__name__)
def test_resampling_knows_no_seam_but_its_own_patches(make: tuple[type[nn.Module], int, int]) -> None:
    layer, x = seeded(*make), field(2, 6, 3, 4, 8)
    out = layer(x)
    assert out.shape == ((2, 4, 3, 2, 4) if make[0] is Downsample else (2, 4, 3, 8, 16))
    step = out.shape[-1] * 2 // 8
    close(layer(x.roll(2, -1)), out.roll(step, -1))


def test_a_patch_that_went_down_comes_up_at_its_place() -> None:
    down, up = seeded(Downsample, 1, 1), seeded(Upsample, 1, 1)
    base = up(down(torch.zeros(1, 1, 1, 4, 4)))
    one = torch.zeros(1, 1, 1, 4, 4)
    one[..., 2, 1] = 1.0
    changed = (up(down(one)) - base).abs()[0, 0, 0] > 1e-7
    assert changed.nonzero().tolist() == [[2, 0], [2, 1], [3, 0], [3, 1]]


def test_zonal_mixing_adds_the_same_along_a_circle_of_latitude() -> None:
    x = field(2, 8, 3, 5, 7)
    added = seeded(ZonalMixing, 8)(x) - x
    close(added, added[..., :1].expand_as(added))


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(3)))
def test_epochs_may_stand_in_any_order(order: list[int]) -> None:
    mixing, x = seeded(EpochMixing, 4), field(2, 3, 4, 2, 3, 5)
    out = mixing(x.flatten(0, 1), 3).unflatten(0, (2, 3))
    close(mixing(x[:, order].flatten(0, 1), 3).unflatten(0, (2, 3)), out[:, order])


def test_epochs_of_other_samples_are_not_mixed_in() -> None:
    mixing, x = seeded(EpochMixing, 4), field(4, 4, 2, 3, 5)
    close(mixing(x, 2)[:2], mixing(x[:2], 2))
    assert not torch.allclose(mixing(x, 4), mixing(x, 2)), "epochs of one sample are mixed"


def test_one_epoch_or_many_of_the_same_change_nothing() -> None:
    mixing, x = seeded(EpochMixing, 4), field(1, 4, 2, 3, 5)
    assert torch.equal(mixing(x, 1), x)
    close(mixing(x.repeat(3, 1, 1, 1, 1), 3), x.repeat(3, 1, 1, 1, 1))


@given(features=st.integers(1, 200))
def test_normalisation_fits_any_number_of_features(features: int) -> None:
    norm = group_norm(features)
    assert features % norm.num_groups == 0 and norm.num_groups <= max(1, features // 8)


def test_a_level_s_coefficients_lie_between_those_of_the_knots_beside_it() -> None:
    """One cell, one feature: the map's slope in sigma is piecewise linear between its knots, bias likewise."""
    layer = seeded(SigmaLinear, 1, 1)
    assert isinstance(layer, SigmaLinear)
    layer.zonal.zero_()
    sigma = torch.tensor([[0.0, 0.25, 0.375, 1.0]])
    out = layer(torch.ones(1, 1, 4, 1, 1), sigma).flatten()
    knots = layer.GAIN * (layer.cell[:, 0, 0] + layer.bias[:, 0])
    close(out, torch.stack((knots[0], knots[1], (knots[1] + knots[2]) / 2, knots[4])))


def test_a_level_s_map_depends_on_its_sigma_and_not_on_the_other_levels() -> None:
    layer, x = seeded(SigmaLinear, 3, 2), field(2, 3, 6, 4, 5)
    sigma = torch.linspace(0.05, 0.98, 6).expand(2, 6)
    close(layer(x, sigma)[:, :, 2:4], layer(x[:, :, 2:4], sigma[:, 2:4]))


def test_the_linear_map_sees_the_cell_and_its_zonal_mean() -> None:
    layer, x = seeded(SigmaLinear, 3, 2), field(1, 3, 2, 4, 5)
    sigma = torch.tensor([[0.5, 1.0]])
    assert isinstance(layer, SigmaLinear)
    cell, zonal, bias = layer.GAIN * layer.cell[2], layer.GAIN * layer.zonal[2], layer.GAIN * layer.bias[2]
    expected = cell @ x[0, :, 0, 1, 3] + zonal @ x[0, :, 0, 1].mean(dim=-1) + bias
    close(layer(x, sigma)[0, :, 0, 1, 3], expected)


def test_beyond_a_pole_lies_the_other_side_of_the_globe() -> None:
    """On a smooth field of the sphere: the padded rows are its values there."""
    rows, columns = 8, 16
    latitude = torch.deg2rad(90 - (torch.arange(-1, rows + 1) + 0.5) * 180 / rows)
    longitude = torch.arange(columns) * 2 * torch.pi / columns

    def field(lat: Tensor) -> Tensor:  # x + 2 z of the unit vector, which goes on smoothly beyond a pole
        return lat.cos()[:, None] * longitude.cos() + 2 * lat.sin()[:, None]

    inside = field(latitude[1:-1])[None, None, None]
    padded = pad_sphere(inside, 0, 1, 0, across=True)[0, 0, 0]
    torch.testing.assert_close(padded, field(latitude))
    edge = pad_sphere(inside, 0, 1, 0)[0, 0, 0]
    assert (edge[0] - field(latitude)[0]).abs().max() > 0.3
    odd = inside[..., :15]
    assert torch.equal(pad_sphere(odd, 1, 1, 1, across=True), pad_sphere(odd, 1, 1, 1))
