"""The multi-modal surrogate: tokens of whatever was observed, fused by cross-attention, give targets with their spread.

One query for each target attends to the tokens of the modalities that are present (Jaegle et al. 2022, Perceiver IO,
ICLR, section 3; masks as in Vaswani et al. 2017); a token of the network's own stands there where nothing is. The head
gives a Gaussian (Nix and Weigend 1994). Several members make a deep ensemble (Lakshminarayanan et al. 2017, NeurIPS):
networks that share nothing but the plan, trained side by side, each from its own initial weights.
"""

import math
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from astrofed.shared.models.base import Model
from astrofed.shared.models.surrogate_encoders import CubeEncoder, ScalarEncoder, SeriesEncoder, SpectrumEncoder
from astrofed.shared.models.surrogate_layout import (
    MODALITIES,
    PLACE,
    SCALARS,
    SERIES,
    TARGETS,
    Observations,
    SurrogateLayout,
)
from astrofed.shared.plan import Plan, PlanError, Section

COLUMN = 10  # parts of a column, or of a spectrum, that the direct path sees
LEAST_SPREAD = 0.02  # of a target's width: no prediction is called more certain


class SurrogateShapeError(ValueError):
    """A tensor given to a surrogate is not what its layout says."""


class SurrogateNet(Model):
    """Predicts a belt's surface and radiation, with their uncertainty, from any of four modalities; an ensemble."""

    class Options(Section):
        """Size of the network."""

        width: Annotated[int, Field(ge=8, le=1024)] = 48
        heads: Annotated[int, Field(ge=1, le=32)] = 4
        depth: Annotated[int, Field(ge=1, le=12)] = 2
        """Blocks of cross-attention."""
        cube_features: Annotated[int, Field(ge=4, le=1024)] | None = None
        """Features of the convolutions over the atmosphere, which cost most; by default as many as `width`."""
        members: Annotated[int, Field(ge=1, le=32)] = 1
        """Networks in the ensemble."""

    def __init__(
        self,
        layout: SurrogateLayout,
        *,
        width: int = 48,
        heads: int = 4,
        depth: int = 2,
        cube_features: int | None = None,
        members: int = 1,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.members = nn.ModuleList(
            _Member(layout, width, heads, depth, cube_features or width) for _ in range(members)
        )
        self.balance = nn.Parameter(torch.zeros(len(TARGETS)))
        """Logarithm of each target's typical loss, by which losses are weighed (see the task's `balance`)."""

    @classmethod
    def from_plan(cls, plan: Plan, options: Section) -> Self:
        """Build the network whose shapes the plan's task section gives.

        Raises:
            PlanError: the task has no modalities, or width is no multiple of heads.
        """
        given = cls.Options.model_validate(options.model_dump())
        if given.width % given.heads:
            raise PlanError(f"model.width: {given.width} must be a multiple of model.heads, {given.heads}")
        layout = SurrogateLayout.of_plan(plan)
        return cls(
            layout,
            width=given.width,
            heads=given.heads,
            depth=given.depth,
            cube_features=given.cube_features,
            members=given.members,
        )

    def forward(self, seen: Observations) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation, [member, batch, target] each, both in the targets' widths.

        Raises:
            SurrogateShapeError: a tensor of a modality that is present has another shape than the layout says.
        """
        self._check(seen)
        out = torch.stack([member(seen) for member in self.members])
        return out[..., 0], LEAST_SPREAD + F.softplus(out[..., 1])

    def _check(self, seen: Observations) -> None:
        expected = {
            "place": (seen.place, (PLACE,)),
            "cube": (seen.cube, (len(self.layout.variables) + 1, None, None)),
            "scalars": (seen.scalars, (len(SCALARS),)),
            "spectrum": (seen.spectrum, (2, None)),
            "series": (seen.series, (len(SERIES), self.layout.months_in)),
            "present": (seen.present, (len(MODALITIES),)),
        }
        for name, (tensor, shape) in expected.items():
            fits = tensor.ndim == 1 + len(shape) and all(
                want in (None, got) for want, got in zip(shape, tensor.shape[1:], strict=True)
            )
            if not fits or len(tensor) != len(seen.place):
                want = ", ".join("any" if size is None else str(size) for size in shape)
                raise SurrogateShapeError(
                    f"{name} is {list(tensor.shape)}; expected [batch = {len(seen.place)}, {want}]"
                )


class _Member(nn.Module):
    """One network of the ensemble. Parameters below `encoders.<modality>` are that modality's own block."""

    def __init__(self, layout: SurrogateLayout, width: int, heads: int, depth: int, cube_features: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {
                "cube": CubeEncoder(len(layout.variables) + 1, cube_features, width),
                "scalars": ScalarEncoder(len(SCALARS), width),
                "spectrum": SpectrumEncoder(2, width),
                "series": SeriesEncoder(len(SERIES), layout.months_in, width),
            }
        )
        self.direct = DirectPath(layout)
        self.own = nn.Parameter(torch.randn(1, width) * 0.3)  # the token that is always there
        self.queries = nn.Parameter(torch.randn(len(TARGETS), width) * 0.3)
        self.place = nn.Sequential(nn.Linear(PLACE, width), nn.GELU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(CrossBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Parameter(torch.randn(len(TARGETS), width, 2) * 0.1 / math.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(len(TARGETS), 2))

    def forward(self, seen: Observations) -> Tensor:
        """Return [batch, target, 2]: the mean, and what the spread is made of."""
        batch = len(seen)
        tokens, masks = [self.own.expand(batch, 1, -1)], [seen.present.new_ones(batch, 1)]
        for index, name in enumerate(MODALITIES):
            present = seen.present[:, index]
            if bool(present.any()):  # an encoder that nobody asks is not run, and so has no gradient
                found = self.encoders[name](getattr(seen, name))
                tokens.append(found)
                masks.append(present[:, None].expand(batch, found.shape[1]))
        context, mask = torch.cat(tokens, dim=1), torch.cat(masks, dim=1)
        x = self.queries + self.place(seen.place)[:, None]
        for block in self.blocks:
            x = block(x, context, mask)
        out = torch.einsum("btw,two->bto", self.norm(x), self.head) + self.bias
        return torch.stack((out[..., 0] + self.direct(seen), out[..., 1]), dim=-1)


class DirectPath(nn.Module):
    """What each modality says by itself in a straight line, added up; how much each counts depends on the company.

    Linear in the modality's numbers, each also times sine and cosine of latitude, so that a season has its opposite on
    the other side of the equator. It begins at zero and is learned in few rounds; the attention learns what is left.
    """

    def __init__(self, layout: SurrogateLayout) -> None:
        super().__init__()
        sizes = {
            "cube": len(layout.variables) * COLUMN,
            "scalars": len(SCALARS),
            "spectrum": COLUMN,
            "series": len(SERIES) * layout.months_in,
        }
        self.encoders = nn.ModuleDict({name: nn.Linear(PLACE * size, len(TARGETS)) for name, size in sizes.items()})
        self.gates = nn.Linear(len(MODALITIES), len(MODALITIES) * len(TARGETS))
        for weight in self.parameters():
            nn.init.zeros_(weight)

    def forward(self, seen: Observations) -> Tensor:
        """Return [batch, target]."""
        where = torch.cat((torch.ones_like(seen.place[:, :1]), seen.place[:, :2]), dim=1)
        gates = 1 + self.gates(seen.present.to(where.dtype)).unflatten(1, (len(MODALITIES), len(TARGETS)))
        total = torch.zeros_like(gates[:, 0])
        for index, name in enumerate(MODALITIES):
            present = seen.present[:, index]
            if bool(present.any()):
                numbers = self._numbers(name, seen)
                row = (where[:, :, None] * numbers[:, None]).flatten(1)
                total = total + present[:, None] * gates[:, index] * self.encoders[name](row)
        return total

    def _numbers(self, name: str, seen: Observations) -> Tensor:
        """Return [batch, number]: columns and spectra as `COLUMN` means, the others as they are."""
        if name == "cube":
            return F.adaptive_avg_pool1d(seen.cube[:, :-1].mean(dim=-1), COLUMN).flatten(1)
        if name == "spectrum":
            return F.adaptive_avg_pool1d(seen.spectrum[:, 0], COLUMN)
        return seen.scalars if name == "scalars" else seen.series.flatten(1)


class CrossBlock(nn.Module):
    """Queries attend to the tokens that are present, then to each other; then a perceptron. Residual, norm first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_query, self.norm_context, self.norm_out = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.heads = heads
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Return the queries, updated.

        Args:
            x: [batch, query, width].
            context: [batch, token, width].
            mask: [batch, token] bool, true where a token is there; at least one is.
        """
        query, seen = self.norm_query(x), self.norm_context(context)
        parts = (self.query(query), self.key(seen), self.value(seen))
        split = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]
        mixed = F.scaled_dot_product_attention(split[0], split[1], split[2], attn_mask=mask[:, None, None])
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + self.perceptron(self.norm_out(x))
        return out
