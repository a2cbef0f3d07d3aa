"""The datacube network: months of a world's climate in, the following months out, on five physical axes.

A small U-Net over [lev, lat, lon] (Ronneberger et al. 2015) whose trunk runs at half and quarter resolution in latitude
and longitude, beside a linear map at full resolution. The climate months of a sample are mixed by the first layer, its
geological epochs by deep sets. It knows no batch statistics and no grid size; on a sphere it has no seam in longitude.
"""

from typing import Annotated, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from astrofed.shared.models.base import Model
from astrofed.shared.models.datacube_layout import SIGMA, DatacubeLayout
from astrofed.shared.models.layers import Downsample, SigmaLinear, SphereBlock, Upsample, group_norm
from astrofed.shared.models.signature import Axis, Input
from astrofed.shared.plan import Plan, Section


class DatacubeShapeError(ValueError):
    """A tensor given to a datacube network is not what its layout says."""


class DatacubeNet(Model):
    """Predicts standardised changes of the climate from the months before; a 3-D U-Net for worlds."""

    last_layers: ClassVar[tuple[str, ...]] = ("norm.", "head.", "linear.")
    can_checkpoint: ClassVar[bool] = True

    class Options(Section):
        """Size of the network."""

        base_features: Annotated[int, Field(ge=4, le=512)] = 32
        coarse_features: Annotated[int, Field(ge=4, le=512)] = 48
        depth: Annotated[int, Field(ge=1, le=4)] = 1
        """Residual blocks at each of the three stations: half, quarter, half resolution."""

    def __init__(
        self, layout: DatacubeLayout, *, base_features: int = 32, coarse_features: int = 48, depth: int = 1
    ) -> None:
        super().__init__()
        self.layout = layout
        channels_in = len(layout.variables) * layout.months_in + layout.forcings
        channels_out = len(layout.variables) * layout.months_out
        self.stem = Downsample(channels_in, base_features)
        self.encode = nn.ModuleList(SphereBlock(base_features) for _ in range(depth))
        self.down = Downsample(base_features, coarse_features)
        self.middle = nn.ModuleList(SphereBlock(coarse_features) for _ in range(depth))
        self.up = Upsample(coarse_features, base_features)
        self.decode = nn.ModuleList(SphereBlock(base_features) for _ in range(depth))
        self.norm = group_norm(base_features)
        self.head = Upsample(base_features, channels_out)
        self.linear = SigmaLinear(channels_in, channels_out)
        with torch.no_grad():  # start near persistence: no change
            self.head.conv.weight.mul_(0.1)
            self.head.conv.bias.mul_(0.1)  # type: ignore[union-attr]

    @classmethod
    def from_plan(cls, plan: Plan, options: Section) -> Self:
        """Build the network whose shapes the plan's task section gives."""
        given = cls.Options.model_validate(options.model_dump())
        return cls(
            DatacubeLayout.of_plan(plan),
            base_features=given.base_features,
            coarse_features=given.coarse_features,
            depth=given.depth,
        )

    def signature(self) -> tuple[Input, ...]:
        """Return state and forcing; exported, latitudes and longitudes come in multiples of the trunk's stride."""
        batch, epochs, lev = Axis("batch", 2), Axis("geological_time", 2), Axis("lev", 10)
        grid = (epochs, lev, Axis("lat", 32, multiple=4), Axis("lon", 64, multiple=4))
        return (
            Input("state", (batch, len(self.layout.variables), self.layout.months_in, *grid)),
            Input("forcing", (batch, self.layout.forcings, *grid)),
        )

    def forward(self, state: Tensor, forcing: Tensor) -> Tensor:
        """Map the input months to standardised changes since the last of them.

        Args:
            state: [batch, variable, climate_time = months_in, geological_time, lev, lat, lon], dimensionless: the last
                month standardised by the fields' scales; the months before as differences from it, by the scales of
                month-to-month changes.
            forcing: [batch, forcing, geological_time, lev, lat, lon], dimensionless.

        Returns:
            [batch, variable, climate_time = months_out, geological_time, lev, lat, lon]: changes since the last input
            month in units of the month-to-month change.

        Raises:
            DatacubeShapeError: a tensor's shape doesn't fit the layout.
        """
        self._check(state, forcing)
        batch, _, _, epochs, _, lat, lon = state.shape
        x = torch.cat((state.flatten(1, 2).transpose(1, 2), forcing.transpose(1, 2)), dim=2).flatten(0, 1)
        sigma = forcing[:, SIGMA, :, :, 0, 0].flatten(0, 1)
        direct = self.linear(x, sigma)
        # The trunk halves latitude and longitude twice. Other grids are continued southward, and go round the globe
        # as often as makes their longitudes a multiple of four; the rounds' mean knows no seam either.
        # Tests that tracing with symbolic sizes can decide, unlike a greatest common divisor.
        rounds = 1 if lon % 4 == 0 else 2 if lon % 2 == 0 else 4
        if lat % 4:
            x = F.pad(x, (0, 0, 0, -lat % 4, 0, 0), mode="replicate")
        h = self.stem(x.repeat(1, 1, 1, 1, rounds) if rounds > 1 else x)
        for block in self.encode:
            h = self._run(block, h, epochs)
        coarse = self.down(h)
        for block in self.middle:
            coarse = self._run(block, coarse, epochs)
        h = h + self.up(coarse)
        for block in self.decode:
            h = self._run(block, h, epochs)
        trunk = self.head(F.gelu(self.norm(h)))[..., :lat, :]
        out: Tensor = direct + trunk.unflatten(-1, (rounds, lon)).mean(dim=-2)
        variables, months = len(self.layout.variables), self.layout.months_out
        return out.reshape(batch, epochs, variables, months, *out.shape[2:]).permute(0, 2, 3, 1, 4, 5, 6)

    def _run(self, block: nn.Module, x: Tensor, epochs: int) -> Tensor:
        """Call a block; while `checkpointing`, keep its input alone and compute the rest again in the backward pass."""
        if self.checkpointing and torch.is_grad_enabled():
            kept: Tensor = checkpoint(block, x, epochs, use_reentrant=False, preserve_rng_state=False)
            return kept
        out: Tensor = block(x, epochs)
        return out

    def _check(self, state: Tensor, forcing: Tensor) -> None:
        variables, months = len(self.layout.variables), self.layout.months_in
        axes = "[batch, variable, climate_time, geological_time, lev, lat, lon]"
        if state.ndim != 7 or state.shape[1:3] != (variables, months):
            raise DatacubeShapeError(
                f"state is {list(state.shape)}; expected {axes} with {variables} variables and {months} input months"
            )
        expected = (state.shape[0], self.layout.forcings, *state.shape[3:])
        if forcing.shape != expected:
            raise DatacubeShapeError(
                f"forcing is {list(forcing.shape)}; for state {list(state.shape)} expected {expected}"
            )
