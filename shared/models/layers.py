"""Layers for fields on a sphere's [lev, lat, lon] grid: periodic in longitude, bounded in latitude and in the vertical.

No layer here couples samples: there are no batch statistics, and every mean is over a sample's own axes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pad_sphere(x: Tensor, lev: int, lat: int, lon: int) -> Tensor:
    """Pad [batch, feature, lev, lat, lon]: the field itself round the globe in lon, its edge value in lat and lev."""
    if lon:
        x = torch.cat((x[..., -lon:], x, x[..., :lon]), dim=-1)
    if lat or lev:
        x = F.pad(x, (0, 0, lat, lat, lev, lev), mode="replicate")
    return x


def group_norm(features: int) -> nn.GroupNorm:
    """Group normalisation (Wu and He 2018) with about eight features a group; independent of the batch."""
    groups = max(1, features // 8)
    while features % groups:
        groups -= 1
    return nn.GroupNorm(groups, features)


class SphereConv(nn.Module):
    """A 3 x 3 x 3 convolution over [lev, lat, lon] that keeps the grid and knows no seam in longitude."""

    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(features_in, features_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, features_in, lev, lat, lon] -> [batch, features_out, lev, lat, lon]."""
        padded = pad_sphere(x, 1, 1, 1)
        if x.shape[0] > 1:
            out: Tensor = self.conv(padded)
            return out
        # On a CPU, torch convolves a single sample in 3-D by a path three times as slow as this: the same sums, as a
        # 2-D convolution over every level whose channels are the level's own and its two neighbours'.
        levels = padded[0].transpose(0, 1)
        triples = torch.cat((levels[:-2], levels[1:-1], levels[2:]), dim=1)
        flat = F.conv2d(triples, self.conv.weight.transpose(1, 2).flatten(1, 2), self.conv.bias)
        return flat.transpose(0, 1)[None]


class ZonalMixing(nn.Module):
    """Adds to every cell what a small convolution over [lev, lat] makes of the zonal mean.

    The zonal mean is what weather noise spares and the season moves; it reaches round the globe at almost no cost.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = group_norm(features)
        self.meet = nn.Conv2d(features, features, 3, padding=1, padding_mode="replicate")
        self.out = nn.Conv2d(features, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, feature, lev, lat, lon], shape kept; equivariant to any roll in longitude."""
        mean = self.norm(x.mean(dim=-1))
        change: Tensor = self.out(F.gelu(self.meet(mean)))
        return x + change[..., None]


class EpochMixing(nn.Module):
    """Adds to each geological epoch a linear map of the mean over a sample's epochs less its own state.

    It commutes with any reordering of the epochs (Zaheer et al. 2017, Deep Sets), is defined for any number of them and
    adds nothing where there is one.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.map = nn.Conv3d(features, features, 1, bias=False)

    def forward(self, x: Tensor, epochs: int) -> Tensor:
        """[batch · epoch, feature, lev, lat, lon] with epochs innermost, shape kept."""
        if epochs == 1:
            return x
        grouped = x.reshape(-1, epochs, *x.shape[1:])
        others = grouped.mean(dim=1, keepdim=True) - grouped
        change: Tensor = self.map(others.flatten(0, 1))
        return x + change


class SphereBlock(nn.Module):
    """A residual block: norm, 3-D convolution, GELU, pointwise map; then mixing round the globe and over epochs."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = group_norm(features)
        self.conv = SphereConv(features, features)
        self.out = nn.Conv3d(features, features, 1)
        self.zonal = ZonalMixing(features)
        self.epochs = EpochMixing(features)

    def forward(self, x: Tensor, epochs: int) -> Tensor:
        """[batch · epoch, feature, lev, lat, lon], shape kept."""
        x = x + self.out(F.gelu(self.conv(self.norm(x))))
        out: Tensor = self.epochs(self.zonal(x), epochs)
        return out


class Downsample(nn.Module):
    """Halves the grid in latitude and longitude by a learned map of each 2 x 2 patch."""

    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(features_in, features_out, (1, 2, 2), stride=(1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, features_in, lev, lat, lon] -> [batch, features_out, lev, lat / 2, lon / 2]."""
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Doubles the grid in latitude and longitude: each cell is mapped to a 2 x 2 patch of its own."""

    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(features_in, features_out, (1, 2, 2), stride=(1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, features_in, lev, lat, lon] -> [batch, features_out, lev, 2 lat, 2 lon]."""
        out: Tensor = self.conv(x)
        return out


class SigmaLinear(nn.Module):
    """A linear map of each cell and of its zonal mean, whose coefficients vary with the level.

    The coefficients are piecewise linear in sigma = p / ps between a few knots, so that one map serves any number of
    levels. Convolutions see the neighbourhood; this sees the cell at full resolution, as a pointwise regression would.
    """

    KNOTS = 5
    GAIN = 3.0  # lets the few coefficients of this map move faster than the trunk's under one learning rate

    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__()
        self.cell = nn.Parameter(torch.zeros(self.KNOTS, features_out, features_in))
        self.zonal = nn.Parameter(torch.zeros(self.KNOTS, features_out, features_in))
        self.bias = nn.Parameter(torch.zeros(self.KNOTS, features_out))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Map x [batch, features_in, lev, lat, lon] at sigma [batch, lev] to [batch, features_out, lev, lat, lon]."""
        knots = torch.arange(self.KNOTS, device=x.device)
        hats = self.GAIN * (1 - (sigma[..., None] * (self.KNOTS - 1) - knots).abs()).clamp(min=0)
        cell = torch.einsum("blk,kof->blof", hats, self.cell)
        zonal = torch.einsum("blk,kof->blof", hats, self.zonal)
        bias = torch.einsum("blk,ko->blo", hats, self.bias)
        by_level = x.transpose(1, 2)
        local = torch.matmul(cell, by_level.flatten(3)).reshape(*cell.shape[:3], *x.shape[3:])
        mean = torch.matmul(zonal, by_level.mean(dim=-1)) + bias[..., None]
        return (local + mean[..., None]).transpose(1, 2)
