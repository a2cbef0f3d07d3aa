"""The peer of the datacube network: a plain 3-D U-Net of the same number of parameters, on the same inputs and outputs.

Ronneberger et al. (2015) in three dimensions: two levels of two 3 x 3 x 3 convolutions with zero padding, group norm
and GELU, max pooling and transposed convolutions over latitude and longitude, skip connections by concatenation. It
knows no sphere, no levels, no zonal mean and no other epoch, and predicts changes since the last month, as ours does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrofed.shared.models.datacube_layout import DatacubeLayout


class UNet(nn.Module):
    """State and forcing as of `DatacubeNet`; `features` at full resolution, twice as many at half of it."""

    def __init__(self, layout: DatacubeLayout, features: int) -> None:
        super().__init__()
        self.layout = layout
        channels = len(layout.variables) * layout.months_in + layout.forcings
        self.encode = _Pair(channels, features)
        self.middle = _Pair(features, 2 * features)
        self.up = nn.ConvTranspose3d(2 * features, features, (1, 2, 2), stride=(1, 2, 2))
        self.decode = _Pair(2 * features, features)
        self.head = nn.Conv3d(features, len(layout.variables) * layout.months_out, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, state: Tensor, forcing: Tensor) -> Tensor:
        """Shapes as of `DatacubeNet.forward`; latitudes and longitudes are even in number."""
        batch, _, _, epochs = state.shape[:4]
        x = torch.cat((state.flatten(1, 2).transpose(1, 2), forcing.transpose(1, 2)), dim=2).flatten(0, 1)
        skip = self.encode(x)
        h = self.middle(F.max_pool3d(skip, (1, 2, 2)))
        out: Tensor = self.head(self.decode(torch.cat((skip, self.up(h)), dim=1)))
        shape = (batch, epochs, len(self.layout.variables), self.layout.months_out, *out.shape[2:])
        return out.reshape(shape).permute(0, 2, 3, 1, 4, 5, 6)


class _Pair(nn.Sequential):
    def __init__(self, features_in: int, features: int) -> None:
        super().__init__(
            nn.Conv3d(features_in, features, 3, padding=1),
            nn.GroupNorm(4, features),
            nn.GELU(),
            nn.Conv3d(features, features, 3, padding=1),
            nn.GroupNorm(4, features),
            nn.GELU(),
        )


def unet_like(layout: DatacubeLayout, parameters: int) -> UNet:
    """Return the U-Net whose number of parameters is nearest to the one given."""
    sizes = range(8, 129, 4)
    return min((UNet(layout, size) for size in sizes), key=lambda net: abs(count(net) - parameters))


def count(model: nn.Module) -> int:
    """Return how many parameters a network has."""
    return sum(parameter.numel() for parameter in model.parameters())
