"""From one modality to tokens: an encoder each for datacube, scalars, spectrum and time series.

Tokens are [batch, token, width]. No encoder couples samples: there are no batch statistics.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CubeEncoder(nn.Module):
    """Two 3 x 3 convolutions over [lev, sector], periodic in longitude; a token for each part of the column."""

    def __init__(self, channels: int, hidden: int, width: int, tokens: int = 5) -> None:
        super().__init__()
        self.tokens = tokens
        self.first = nn.Conv2d(channels, hidden, 3)
        self.second = nn.Conv2d(hidden, hidden, 3)
        self.out = nn.Linear(2 * hidden, width)
        self.mark = nn.Parameter(torch.randn(tokens, width) * 0.3)

    def forward(self, cube: Tensor) -> Tensor:
        """[batch, channel, lev, sector] -> [batch, token, width]; any number of levels and sectors."""
        h = self.second(_ring(F.gelu(self.first(_ring(cube)))))
        mean = h.mean(dim=-1, keepdim=True)
        waves = ((h - mean).square().mean(dim=-1) + 1e-6).sqrt()  # how far sectors differ; smooth where they don't
        column = torch.cat((mean.squeeze(-1), waves), dim=1)
        parts = F.adaptive_avg_pool1d(column, self.tokens).transpose(1, 2)
        tokens: Tensor = self.out(parts) + self.mark
        return tokens


def _ring(x: Tensor) -> Tensor:
    """Pad [batch, channel, lev, sector] by one: round the globe, and by the edge value in the vertical."""
    x = torch.cat((x[..., -1:], x, x[..., :1]), dim=-1)
    return F.pad(x, (0, 0, 1, 1), mode="replicate")


class ScalarEncoder(nn.Module):
    """A perceptron from all scalars to a few tokens."""

    def __init__(self, scalars: int, width: int, tokens: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(scalars, 2 * width)
        self.second = nn.Linear(2 * width, tokens * width)
        self.mark = nn.Parameter(torch.randn(tokens, width) * 0.3)

    def forward(self, scalars: Tensor) -> Tensor:
        """[batch, scalar] -> [batch, token, width]."""
        tokens: Tensor = self.second(F.gelu(self.first(scalars))).unflatten(-1, self.mark.shape) + self.mark
        return tokens


class SpectrumEncoder(nn.Module):
    """Two strided convolutions along the wavelength; a token for each part of the spectrum."""

    def __init__(self, channels: int, width: int, tokens: int = 6) -> None:
        super().__init__()
        self.tokens = tokens
        self.first = nn.Conv1d(channels, width, 5, stride=2, padding=2)
        self.second = nn.Conv1d(width, width, 5, stride=2, padding=2)
        self.out = nn.Linear(width, width)
        self.mark = nn.Parameter(torch.randn(tokens, width) * 0.3)

    def forward(self, spectrum: Tensor) -> Tensor:
        """[batch, channel, wavelength] -> [batch, token, width]; any number of wavelengths."""
        h = F.gelu(self.second(F.gelu(self.first(spectrum))))
        parts = F.adaptive_avg_pool1d(h, self.tokens).transpose(1, 2)
        tokens: Tensor = self.out(parts) + self.mark
        return tokens


class SeriesEncoder(nn.Module):
    """A convolution along the months; a token for each month, marked by its age."""

    def __init__(self, series: int, months: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(series, width, 3, padding=1, padding_mode="replicate")
        self.out = nn.Linear(width, width)
        self.mark = nn.Parameter(torch.randn(months, width) * 0.3)

    def forward(self, series: Tensor) -> Tensor:
        """[batch, series, month] -> [batch, token = month, width]."""
        tokens: Tensor = self.out(F.gelu(self.first(series)).transpose(1, 2)) + self.mark
        return tokens
