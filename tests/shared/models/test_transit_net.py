"""The transit network: it begins with what a box says, sees no other sample, and checks its shapes."""

import pytest
import torch

from astrofed.shared.models.transit_layout import BINS, CHANNELS, SCALARS, TARGETS
from astrofed.shared.models.transit_net import TransitNet, TransitShapeError


@pytest.fixture
def model() -> TransitNet:
    torch.manual_seed(0)
    return TransitNet(width=16, heads=2).eval()


def seen(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (batch, len(CHANNELS), BINS), (batch, len(SCALARS))
    return torch.randn(shapes[0], generator=generator), torch.randn(shapes[1], generator=generator)


@torch.no_grad()
def test_it_begins_with_the_box_and_a_positive_spread(model: TransitNet) -> None:
    series, scalars = seen(20)
    out = model(series, scalars)
    assert out.shape == (20, len(TARGETS), 2)
    torch.testing.assert_close(out[..., 0], scalars[:, : len(TARGETS)], atol=0.1, rtol=0)
    assert (out[..., 1] > 0).all()


@torch.no_grad()
def test_samples_do_not_see_each_other(model: TransitNet) -> None:
    series, scalars = seen(5)
    torch.testing.assert_close(model(series, scalars)[2:3], model(series[2:3], scalars[2:3]), atol=1e-6, rtol=0)


def test_other_shapes_are_refused(model: TransitNet) -> None:
    series, scalars = seen(2)
    with pytest.raises(TransitShapeError, match=r"series is \[2, 3, 47\]; expected \[batch, 3, 48\]"):
        model(series[..., 1:], scalars)
    with pytest.raises(TransitShapeError, match="scalars"):
        model(series, scalars[:, 1:])
