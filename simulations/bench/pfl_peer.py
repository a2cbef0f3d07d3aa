"""apple's pfl as a peer: its simulated backend and federated averaging on the same model, batches and optimiser.

https://github.com/apple/pfl-research; written for version 0.6.
"""

from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from astrofed.client.optimizers import make_optimizer
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import Plan
from astrofed.shared.seeds import derive_seed
from astrofed.simulations.bench.digits import cross_entropy, share


class PflDigits:
    """Federated averaging by pfl over the digits' shares of a plan's participants, one round at a time."""

    def __init__(self, plan: Plan) -> None:
        from pfl.aggregate.simulate import SimulatedBackend
        from pfl.aggregate.weighting import WeightByDatapoints
        from pfl.algorithm.base import NNAlgorithmParams
        from pfl.algorithm.federated_averaging import FederatedAveraging
        from pfl.data.federated_dataset import FederatedDataset
        from pfl.data.pytorch import PyTorchTensorDataset
        from pfl.hyperparam.base import NNTrainHyperParams
        from pfl.model.pytorch import PyTorchModel

        training = plan.training
        shares = {participant.name: share(participant.data).training for participant in plan.participants}
        self.round = 0

        def dataset(user: str) -> Any:
            """The user's images in this round's order, which pfl then cuts into batches."""
            images, labels = shares[user]
            generator = torch.Generator().manual_seed(derive_seed(plan.seed, "train", self.round, user))
            order = torch.randperm(len(labels), generator=generator)
            return PyTorchTensorDataset((images[order], labels[order]), user_id=user)

        def optimizer(parameters: Any, lr: float) -> torch.optim.Optimizer:
            return make_optimizer(nn.ParameterList(parameters), training, lr)

        network = _WithLoss(build_model(plan))
        central = torch.optim.SGD(network.parameters(), lr=1.0)  # the mean change, as it is
        self._network = network
        self._model = PyTorchModel(network, optimizer, central)
        data = FederatedDataset(dataset, cycle(shares).__next__)
        self._backend = SimulatedBackend(data, data, postprocessors=[WeightByDatapoints()])
        self._algorithm = FederatedAveraging()
        self._until = partial(
            NNAlgorithmParams,
            evaluation_frequency=1_000_000,
            train_cohort_size=len(shares),
            val_cohort_size=None,
        )
        self._training = NNTrainHyperParams(
            local_num_epochs=training.epochs,
            local_learning_rate=training.learning_rate,
            local_batch_size=training.batch_size,
        )

    def run_round(self) -> None:
        """Run the next round."""
        self.round += 1
        self._algorithm.run(
            self._until(central_num_iterations=self.round),
            self._backend,
            self._model,
            self._training,
            send_metrics_to_platform=False,  # or pfl prints a table each round
        )

    @property
    def weights(self) -> dict[str, Tensor]:
        """The global weights after the last round."""
        return {name: value.detach().clone() for name, value in self._network.model.state_dict().items()}


class _WithLoss(nn.Module):
    """A network with the two methods that pfl asks for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross entropy."""
        return cross_entropy(self.model, (images, labels))

    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return something, as pfl insists; it asks in its first round only."""
        from pfl.metrics import Weighted

        return {"images": Weighted(len(labels), len(labels))}
