"""Who was trained on, guessed from the loss on each (Yeom et al. 2018, arXiv:1709.01604): with and without privacy.

Real data: scikit-learn's digits, each image in the training by a fair coin. A quarter of them, in or not, have a wrong
label, as catalogues do: those can only be learnt by heart.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from astrofed.client.privacy.units import Rows
from astrofed.client.task import TrainInstruction
from astrofed.client.training import train_locally
from astrofed.shared.seeds import torch_seeded
from astrofed.simulations.audit.bound import Bound, bound
from astrofed.simulations.audit.canaries import Present, coins
from astrofed.simulations.audit.cases import DELTA, audit_plan, train_audited
from astrofed.simulations.bench.digits_sites import load_digits

IMAGES, WRONG, ROUNDS = 1500, 1 / 4, 20
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Attack:
    """What guesses by the loss come to."""

    epsilon: float | None  # that the ledger tells; None: trained without privacy
    auc: float  # probability that a member's loss is less than another image's
    error: float  # standard error of that, were it 1/2
    found: float  # share of members that are told from the others, where 1 % of these are taken for members
    accuracy: float  # on the images that were not trained on and have their right label
    measured: Bound

    @property
    def sound(self) -> bool:
        """Whether the guesses do not contradict the ledger."""
        return self.epsilon is None or self.measured.epsilon <= self.epsilon


def attack(epsilon: float | None, seed: int = 1, count: int = IMAGES, rounds: int = ROUNDS) -> Attack:
    """Train within `epsilon`, or without privacy, and guess; `seed` is of coins, labels and first weights.

    Raises:
        DigitsMissing: scikit-learn, which has the images, is not installed.
    """
    images, labels = load_digits()
    random = np.random.default_rng(seed)
    rows = random.permutation(len(labels))[:count]
    wrong = random.random(count) < WRONG
    shown = np.where(wrong, (labels[rows] + random.integers(1, 10, count)) % 10, labels[rows])
    present = coins(count, seed + 1)
    batch = torch.from_numpy(images[rows]), torch.from_numpy(shown)
    with torch_seeded(seed):
        model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    spent = _train(model, batch, present, epsilon, rounds)
    with torch.no_grad():
        losses = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none").numpy()
        right = model(batch[0]).argmax(dim=1).numpy() == labels[rows]
    members, others = losses[present], losses[~present]
    auc = float((members[:, None] < others).mean() + (members[:, None] == others).mean() / 2)
    return Attack(
        epsilon=spent,
        auc=auc,
        error=float(np.sqrt((len(members) + len(others) + 1) / (12 * len(members) * len(others)))),
        found=float((members < np.quantile(others, 0.01)).mean()),
        accuracy=float(right[~present & ~wrong].mean()),
        measured=bound(-losses, present, DELTA),
    )


def _train(
    model: nn.Module, batch: Batch, present: NDArray[np.bool_], epsilon: float | None, rounds: int
) -> float | None:
    settings = {"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 60, "epochs": 3}
    privacy = None if epsilon is None else {"epsilon": epsilon, "delta": DELTA}
    plan = audit_plan(training=settings, privacy=privacy, rounds=rounds)
    if epsilon is not None:
        return train_audited(model, Present(Rows(batch, _loss), present), plan)
    images, labels = (tensor[torch.from_numpy(present)] for tensor in batch)

    def batches(generator: torch.Generator) -> Iterator[Batch]:
        for rows in torch.split(torch.randperm(len(labels), generator=generator), plan.training.batch_size):
            yield images[rows], labels[rows]

    for number in range(1, plan.rounds + 1):
        train_locally(model, batches, _loss, plan.training, TrainInstruction(number, number), plan.rounds)
    return None


def _loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
