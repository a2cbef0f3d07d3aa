"""What training on a datacube minimises: squared errors in units of change, by area, and the physics' residuals."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from astrofed.client.fitting import Split
from astrofed.client.site import Site
from astrofed.client.tasks.datacube_batches import SPLIT, Batch
from astrofed.client.tasks.datacube_forecast import Forecaster
from astrofed.client.tasks.datacube_physics import PhysicsTerm
from astrofed.client.tasks.datacube_samples import World
from astrofed.client.tasks.datacube_scales import Scales
from astrofed.client.tasks.datacube_scores import area_loss
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Plan


class BalancedInPrivate(UserMistake):
    """A plan balances physics by gradients where per-unit gradients are taken."""


class Objective:
    """The loss of a plan at a site.

    Raises:
        BalancedInPrivate: physics.balance = 'gradient' stands beside [privacy].
        UnknownConstraint, ConstraintNotEvaluable: see `PhysicsTerm`.
    """

    def __init__(self, plan: Plan, site: Site, forecaster: Forecaster, variables: tuple[str, ...]) -> None:
        if plan.physics.balance == "gradient" and plan.privacy is not None:
            raise BalancedInPrivate(
                "physics.balance = 'gradient' has no place beside [privacy]: per-unit gradients are taken of a "
                "function, inside which no other gradients are; set physics.balance = 'fixed'"
            )
        self._site, self._forecaster = site, forecaster
        self._balanced = plan.physics.balance == "gradient"
        self._physics = PhysicsTerm(plan.physics.weights, variables) if plan.physics.weights else None

    @property
    def split(self) -> Split[Batch] | None:
        """How batches are taken in pieces; None where the loss is no mean over samples.

        It is none where penalties are scaled by a whole batch's gradients, or an attack spoils some samples of each.
        """
        whole = self._balanced or self._site.corrupt_inputs is not None or self._site.corrupt_targets is not None
        return None if whole else SPLIT

    def loss(
        self, world: World, scales: Scales, months: int | None = None, *, physics: bool = True
    ) -> Callable[[nn.Module, Batch], Tensor]:
        """Return the loss of a batch of the world, over all target months or the first `months`.

        Without `physics` the residuals are left out; fixers never are.
        """
        term = self._physics if physics else None

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            if self._site.corrupt_inputs is not None:
                batch = replace(batch, state=self._site.corrupt_inputs(batch.state))
            told = self._forecaster.changes(model, batch)[:, :, :months]
            there, area = scales.to(told.device), world.area.to(told.device)
            targets = (batch.target[:, :, :months] - batch.last) / there.change
            if self._site.corrupt_targets is not None:
                targets = self._site.corrupt_targets(targets)
            predicted = self._forecaster.months(world, batch, told, there)
            changes = (predicted - batch.last) / there.change if self._forecaster.fixes else told
            value = area_loss(changes - targets, area)
            if term is None:
                return value
            if self._balanced and told.requires_grad:
                return value + term.balanced(world, batch, predicted, value, told)
            return value + term(world, batch, predicted)

        return loss
