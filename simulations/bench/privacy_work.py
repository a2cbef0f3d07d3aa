"""The networks on which private training is measured: an MLP, a 2-D CNN, the datacube network, an attention block."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from astrofed.shared.models.datacube_layout import DatacubeLayout
from astrofed.shared.models.datacube_net import DatacubeNet
from astrofed.shared.seeds import torch_seeded

Units = tuple[Tensor, ...]


@dataclass(frozen=True)
class Work:
    """A network, a batch of units, and what a step of private training should cost at most."""

    name: str
    make: Callable[[], nn.Module]
    batch: Units  # inputs, then targets, one unit a row
    criterion: nn.Module  # of the network's output and the targets, a mean over units
    at_most: float | None  # times plain SGD; None: no target of its own

    def loss(self, model: nn.Module, batch: Units) -> Tensor:
        """Return the mean loss of some units."""
        value: Tensor = self.criterion(model(*batch[:-1]), batch[-1])
        return value


class Attention(nn.Module):
    """Self-attention over tokens and a perceptron, residual and norm first, as surrogates are made of; 18 tokens."""

    def __init__(self, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [batch, 10] of tokens [batch, token, width]."""
        seen = self.norm_in(tokens)
        parts = (self.query(seen), self.key(seen), self.value(seen))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        scores = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(dim=-1)
        x = tokens + self.out((scores @ value).transpose(1, 2).flatten(2))
        x = x + self.narrow(nn.functional.gelu(self.wide(self.norm_out(x))))
        logits: Tensor = self.head(x.mean(dim=1))
        return logits


def perceptron() -> nn.Module:
    """Return 784 - 512 - 512 - 10 with ReLU; 669,706 parameters."""
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def convolutions() -> nn.Module:
    """Return the network of Opacus' MNIST example; 26,010 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def works() -> list[Work]:
    """Return all networks with a batch each; the datacube network's units have two epochs, folded into its batch."""
    with torch_seeded(1):
        labels = torch.randint(10, (128,))
        images = torch.randn(128, 1, 28, 28)
        tokens = torch.randn(32, 18, 48)
        layout = DatacubeLayout()
        grid = (2, 6, 16, 32)  # geological_time, lev, lat, lon
        state = torch.randn(6, len(layout.variables), layout.months_in, *grid)
        forcing = torch.randn(6, layout.forcings, *grid).clamp(-1, 1)
        target = torch.randn(6, len(layout.variables), layout.months_out, *grid)
    return [
        Work("MLP", perceptron, (images.flatten(1), labels), nn.CrossEntropyLoss(), 3.0),
        Work("2-D CNN", convolutions, (images[:64], labels[:64]), nn.CrossEntropyLoss(), 2.0),
        Work("datacube network", lambda: DatacubeNet(layout), (state, forcing, target), nn.MSELoss(), 1.6),
        Work("attention block", Attention, (tokens, labels[:32]), nn.CrossEntropyLoss(), None),
    ]
