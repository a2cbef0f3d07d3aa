"""Layers for fields on a sphere's [lev, lat, lon] grid: periodic in longitude, bounded in latitude and in the vertical.

No layer here couples samples: there are no batch statistics, and every mean is over a sample's own axes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pad_sphere(x: Tensor, lev: int, lat: int, lon: int, *, across: bool = False) -> Tensor:
    """Pad [batch, feature, lev, lat, lon]: the field itself round the globe in lon, its edge value in lat and lev.

    With `across` the row beyond a pole is the row at the pole turned by half a round, which is what lies there; that
    needs an even number of longitudes, and the poles at both ends of lat.
    """
    if across and lat and x.shape[-1] % 2 == 0:
        beyond = torch.cat((x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)
        north, south = beyond[..., :lat, :].flip(-2), beyond[..., x.shape[-2] - lat :, :].flip(-2)
        x, lat = torch.cat((north, x, south), dim=-2), 0
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

    def __init__(self, features_in: int, features_out: int, *, across: bool = False) -> None:
        super().__init__()
        self.across = across
        self.conv = nn.Conv3d(features_in, features_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, features_in, lev, lat, lon] -> [batch, features_out, lev, lat, lon]."""
        padded = pad_sphere(x, 1, 1, 1, across=self.across)
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
    adds nothing where there is one. With ages the mean's weights fall off with the years between two epochs, as
    exp(−|Δt| / τ) with a learned τ, so that slices of geological time may lie as irregularly as they do.
    """

    def __init__(self, features: int, *, aged: bool = False) -> None:
        super().__init__()
        self.map = nn.Conv3d(features, features, 1, bias=False)
        self.log_memory = nn.Parameter(torch.zeros(())) if aged else None  # ln(τ / 1 Gyr)

    def forward(self, x: Tensor, epochs: int, ages: Tensor | None = None) -> Tensor:
        """[batch · epoch, feature, lev, lat, lon] with epochs innermost, shape kept; ages [batch, epoch] in Gyr."""
        if epochs == 1:
            return x
        grouped = x.reshape(-1, epochs, *x.shape[1:])
        if ages is None or self.log_memory is None:
            others = grouped.mean(dim=1, keepdim=True) - grouped
        else:
            apart = (ages[:, :, None] - ages[:, None, :]).abs()
            weights = torch.softmax(-apart / self.log_memory.exp(), dim=-1)
            others = torch.matmul(weights, grouped.flatten(2)).reshape(grouped.shape) - grouped
        change: Tensor = self.map(others.flatten(0, 1))
        return x + change


class FiLM(nn.Module):
    """Feature-wise linear modulation (Perez et al. 2018): a planet's numbers scale and shift each feature.

    It begins as the identity.
    """

    def __init__(self, conditions: int, features: int) -> None:
        super().__init__()
        self.map = nn.Linear(conditions, 2 * features)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(self, x: Tensor, planet: Tensor) -> Tensor:
        """Modulate x [batch, feature, lev, lat, lon] by planet [batch, condition], shape kept."""
        scale, shift = self.map(planet)[:, :, None, None, None].chunk(2, dim=1)
        out: Tensor = x * (1 + scale) + shift
        return out


class SphereBlock(nn.Module):
    """A residual block: norm, 3-D convolution, GELU, pointwise map; then mixing round the globe and over epochs.

    With `conditions` a planet's numbers modulate what the norm gives; for `across` see `pad_sphere`, for `aged`
    `EpochMixing`.
    """

    def __init__(self, features: int, *, conditions: int = 0, across: bool = False, aged: bool = False) -> None:
        super().__init__()
        self.norm = group_norm(features)
        self.conv = SphereConv(features, features, across=across)
        self.out = nn.Conv3d(features, features, 1)
        self.zonal = ZonalMixing(features)
        self.epochs = EpochMixing(features, aged=aged)
        self.film = FiLM(conditions, features) if conditions else None

    def forward(self, x: Tensor, epochs: int, planet: Tensor | None = None, ages: Tensor | None = None) -> Tensor:
        """[batch · epoch, feature, lev, lat, lon], shape kept.

        planet is [batch · epoch, condition], ages [batch, epoch] in Gyr before present.
        """
        h = self.norm(x)
        if self.film is not None and planet is not None:
            h = self.film(h, planet)
        x = x + self.out(F.gelu(self.conv(h)))
        out: Tensor = self.epochs(self.zonal(x), epochs, ages)
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
