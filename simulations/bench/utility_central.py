"""The same private training done centrally: all sites' rows together, by plain Opacus, to the same epsilon."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from astrofed.client.training import learning_rate
from astrofed.shared.plan import Plan
from astrofed.shared.seeds import torch_seeded


def train_by_opacus(
    model: nn.Module, rows: tuple[Tensor, ...], loss: Callable[[nn.Module, tuple[Tensor, ...]], Tensor], plan: Plan
) -> float:
    """Train `model` in place as the plan says, on all rows, each a unit; return the epsilon that Opacus accounts.

    Batch size, epochs, learning rates, clipping norm and epsilon are the plan's; noise and sampling are Opacus', seeded
    by the plan, with its PRV accountant.
    """
    training, privacy = plan.training, plan.privacy
    assert privacy is not None and privacy.epsilon is not None and training.optimizer == "sgd"
    optimizer = torch.optim.SGD(model.parameters(), lr=training.learning_rate)
    with warnings.catch_warnings(), np.errstate(all="ignore"), torch_seeded(plan.seed):
        warnings.simplefilter("ignore")
        engine = PrivacyEngine(accountant="prv")
        wrapped, private, loader = engine.make_private_with_epsilon(
            module=model.train(),
            optimizer=optimizer,
            data_loader=DataLoader(TensorDataset(*rows), batch_size=min(training.batch_size, len(rows[0]))),
            target_epsilon=privacy.epsilon,
            target_delta=privacy.delta,
            epochs=plan.rounds * training.epochs,
            max_grad_norm=privacy.clipping_norm,
        )
        for number in range(1, plan.rounds + 1):
            for group in private.param_groups:
                group["lr"] = learning_rate(training, number, plan.rounds)
            for _ in range(training.epochs):
                for batch in loader:
                    private.zero_grad()
                    loss(wrapped, tuple(batch)).backward()  # type: ignore[no-untyped-call]
                    private.step()
        spent = float(engine.get_epsilon(privacy.delta))
    model.eval()
    return spent
