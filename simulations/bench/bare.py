"""The bare loop: a round's mathematics in as few lines as torch needs, in one process. What any engine is measured by.

Load the global weights, one client's local training, its weighted change added up; the mean change makes the new
weights. The same batches, optimiser and seeds as the engine's clients have.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from astrofed.client.optimizers import make_optimizer
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import Plan
from astrofed.shared.seeds import derive_seed
from astrofed.simulations.bench.digits import share, shuffled


class BareLoop(ABC):
    """Federated averaging over a plan's participants, one round at a time."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.model = build_model(plan).train()
        self.round = 0

    @abstractmethod
    def train_client(self, index: int) -> int:
        """Train the model in place as participant number `index`; return its number of examples."""

    def run_round(self) -> None:
        """Run the next round."""
        self.round += 1
        weights = list(self.model.parameters())
        start = [weight.detach().clone() for weight in weights]
        change = [torch.zeros_like(weight, dtype=torch.float64) for weight in start]
        examples = 0
        for index in range(len(self.plan.participants)):
            with torch.no_grad():
                for weight, value in zip(weights, start, strict=True):
                    weight.copy_(value)
            count = self.train_client(index)
            with torch.no_grad():
                for total, weight, value in zip(change, weights, start, strict=True):
                    total.add_(weight - value, alpha=count)
            examples += count
        with torch.no_grad():
            for weight, value, total in zip(weights, start, change, strict=True):
                weight.copy_(value + total / examples)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The global weights after the last round."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}


class BareDigits(BareLoop):
    """The digits' shares, a small network, one epoch of the plan's optimiser."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        shares = [share(participant.data).training for participant in plan.participants]
        self._counts = [len(labels) for _, labels in shares]
        self._sources = [shuffled(images, labels, plan.training.batch_size) for images, labels in shares]

    def train_client(self, index: int) -> int:
        """Run one epoch of the plan's optimiser."""
        seed = derive_seed(self.plan.seed, "train", self.round, self.plan.participants[index].name)
        optimizer = make_optimizer(self.model, self.plan.training, self.plan.training.learning_rate)
        for images, labels in self._sources[index](torch.Generator().manual_seed(seed)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return self._counts[index]


class BareTrivial(BareLoop):
    """Adding a number to every weight."""

    def train_client(self, index: int) -> int:
        """Add the participant's number."""
        step = float(self.plan.participants[index].data.removeprefix("add:"))
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.add_(step)
        return 1
