"""The spectrum's network: it begins at the nominal depth, averages over bins, and checks its shapes."""

import math

import pytest
import torch

from astrofed.shared.models.spectrum_net import BinShapeError, SpectrumNet


@pytest.fixture
def model() -> SpectrumNet:
    torch.manual_seed(0)
    return SpectrumNet(width=32).eval()


def bins(*middles: float, half: float = 0.005) -> torch.Tensor:
    return torch.tensor([[math.log(each) - half, math.log(each) + half] for each in middles])


@torch.no_grad()
def test_it_begins_at_the_nominal_depth_with_a_positive_spread(model: SpectrumNet) -> None:
    out = model(bins(0.6, 1.0, 4.3, 11.0))
    assert out.shape == (4, 2)
    assert out[:, 0].abs().max() < 0.3 and (out[:, 1] > 0).all()


@torch.no_grad()
def test_bins_do_not_see_each_other_and_wide_ones_show_less(model: SpectrumNet) -> None:
    rows = bins(0.6, 1.0, 4.3)
    torch.testing.assert_close(model(rows)[1:2], model(rows[1:2]))
    middles = torch.linspace(1.0, 10.0, 200).tolist()
    narrow, wide = (model(bins(*middles, half=half))[:, 0].std() for half in (0.001, 0.4))
    assert wide < 0.6 * narrow


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 1)])
def test_other_shapes_are_refused(model: SpectrumNet, shape: tuple[int, ...]) -> None:
    with pytest.raises(BinShapeError, match=r"expected \[batch, 2\]"):
        model(torch.ones(shape))
