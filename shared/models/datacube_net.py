"""The datacube network: months of a world's climate in, the following months out, on five physical axes.

A small U-Net over [lev, lat, lon] (Ronneberger et al. 2015) whose trunk runs at half and quarter resolution in latitude
and longitude, beside a linear map at full resolution. The climate months of a sample are mixed by the first layer, its
geological epochs by deep sets. It knows no batch statistics and no grid size; on a sphere it has no seam in longitude.
"""

from typing import Annotated, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from astrofed.shared.models.base import Model
from astrofed.shared.models.datacube_layout import PLANET, SIGMA, DatacubeLayout
from astrofed.shared.models.layers import Downsample, SigmaLinear, SphereBlock, Upsample, group_norm
from astrofed.shared.models.signature import Axis, Input
from astrofed.shared.plan import Plan, PlanError, Section


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
        film: bool = False
        """Let the planet's rotation, radius, gravity, light and CO2 scale and shift every block's features."""
        poles: Literal["edge", "across"] = "edge"
        """What lies beyond a pole for a convolution: the row at the pole again, or the other side of the globe."""
        n_input_vars: Annotated[int, Field(ge=1)] | None = None
        """Follows from task.variables; where it is given it is checked."""
        n_output_vars: Annotated[int, Field(ge=1)] | None = None
        use_physics_constraints: bool | None = None
        """Follows from [physics]; where it is given it is checked."""

    def __init__(
        self,
        layout: DatacubeLayout,
        *,
        base_features: int = 32,
        coarse_features: int = 48,
        depth: int = 1,
        film: bool = False,
        across: bool = False,
    ) -> None:
        super().__init__()
        self.layout = layout
        channels_in = len(layout.variables) * layout.months_in + layout.forcings
        channels_out = len(layout.variables) * layout.months_out
        self.film, self.across = film, across

        def blocks(features: int) -> nn.ModuleList:
            conditions = len(PLANET) if film else 0
            made = (SphereBlock(features, conditions=conditions, across=across, aged=layout.ages) for _ in range(depth))
            return nn.ModuleList(made)

        self.stem = Downsample(channels_in, base_features)
        self.encode = blocks(base_features)
        self.down = Downsample(base_features, coarse_features)
        self.middle = blocks(coarse_features)
        self.up = Upsample(coarse_features, base_features)
        self.decode = blocks(base_features)
        self.norm = group_norm(base_features)
        self.head = Upsample(base_features, channels_out)
        self.linear = SigmaLinear(channels_in, channels_out)
        with torch.no_grad():  # start near persistence: no change
            self.head.conv.weight.mul_(0.1)
            self.head.conv.bias.mul_(0.1)  # type: ignore[union-attr]

    @classmethod
    def from_plan(cls, plan: Plan, options: Section) -> Self:
        """Build the network whose shapes the plan's task section gives."""
        given, layout = cls.Options.model_validate(options.model_dump()), DatacubeLayout.of_plan(plan)
        for key in ("n_input_vars", "n_output_vars"):
            said = getattr(given, key)
            if said not in (None, len(layout.variables)):
                raise PlanError(
                    f"model.{key} = {said}: task.variables names {len(layout.variables)}; leave the key out, or name "
                    "the variables that you want"
                )
        there = bool(plan.physics.fixers or any(plan.physics.weights.values()))
        if given.use_physics_constraints not in (None, there):
            raise PlanError(
                f"model.use_physics_constraints = {str(given.use_physics_constraints).lower()}, but [physics] "
                + ("has weights or fixers; remove the section" if there else "has neither weights nor fixers; add some")
            )
        return cls(
            layout,
            base_features=given.base_features,
            coarse_features=given.coarse_features,
            depth=given.depth,
            film=given.film,
            across=given.poles == "across",
        )

    def signature(self) -> tuple[Input, ...]:
        """Return state and forcing; exported, latitudes and longitudes come in multiples of the trunk's stride."""
        batch, epochs, lev = Axis("batch", 2), Axis("geological_time", 2), Axis("lev", 10)
        grid = (epochs, lev, Axis("lat", 32, multiple=4), Axis("lon", 64, multiple=8 if self.across else 4))
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
        planet = self.layout.planet(forcing).transpose(1, 2).flatten(0, 1) if self.film else None
        ages = forcing[:, -1, :, 0, 0, 0] if self.layout.ages else None
        # The trunk halves latitude and longitude twice. Other grids are continued southward, and go round the globe
        # as often as makes their longitudes a multiple of four; the rounds' mean knows no seam either.
        # Tests that tracing with symbolic sizes can decide, unlike a greatest common divisor.
        rounds = 1 if lon % 4 == 0 else 2 if lon % 2 == 0 else 4
        if lat % 4:
            x = F.pad(x, (0, 0, 0, -lat % 4, 0, 0), mode="replicate")
        h = self.stem(x.repeat(1, 1, 1, 1, rounds) if rounds > 1 else x)
        for block in self.encode:
            h = self._run(block, h, epochs, planet, ages)
        coarse = self.down(h)
        for block in self.middle:
            coarse = self._run(block, coarse, epochs, planet, ages)
        h = h + self.up(coarse)
        for block in self.decode:
            h = self._run(block, h, epochs, planet, ages)
        trunk = self.head(F.gelu(self.norm(h)))[..., :lat, :]
        out: Tensor = direct + trunk.unflatten(-1, (rounds, lon)).mean(dim=-2)
        variables, months = len(self.layout.variables), self.layout.months_out
        return out.reshape(batch, epochs, variables, months, *out.shape[2:]).permute(0, 2, 3, 1, 4, 5, 6)

    def _run(self, block: nn.Module, x: Tensor, epochs: int, planet: Tensor | None, ages: Tensor | None) -> Tensor:
        """Call a block; while `checkpointing`, keep its input alone and compute the rest again in the backward pass."""
        if self.checkpointing and torch.is_grad_enabled():
            kept: Tensor = checkpoint(block, x, epochs, planet, ages, use_reentrant=False, preserve_rng_state=False)
            return kept
        out: Tensor = block(x, epochs, planet, ages)
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
