"""One participant is the centralised case: the same model as a plain training loop written here."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from astrofed.client.app import open_task
from astrofed.client.tasks.planets import PlanetSurrogate
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import Plan, load_plan
from astrofed.shared.seeds import derive_seed
from astrofed.simulations.simulate import simulate, train
from astrofed.simulations.sites import open_simulated_site

OPTIMISERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def by_hand(plan: Plan) -> dict[str, torch.Tensor]:
    """Train on the site's own data: shuffled batches, squared errors of what is given, one optimiser a round."""
    task = open_task(plan, open_simulated_site(plan, 0, None))
    assert isinstance(task, PlanetSurrogate)
    features, targets, given = task.training_rows()
    model = build_model(plan)
    for number in range(1, plan.rounds + 1):
        share = 0.5 * (1 + math.cos(math.pi * (number - 1) / (plan.rounds - 1)))
        rate = plan.training.learning_rate * (plan.training.decay + (1 - plan.training.decay) * share)
        optimizer = OPTIMISERS[plan.training.optimizer](
            model.parameters(), lr=rate, weight_decay=plan.training.weight_decay, fused=True
        )
        generator = torch.Generator().manual_seed(derive_seed(plan.seed, "train", number, plan.participants[0].name))
        for _ in range(plan.training.epochs):
            order = torch.randperm(len(features), generator=generator)
            for start in range(0, len(order), plan.training.batch_size):
                rows = order[start : start + plan.training.batch_size]
                errors = (model(features[rows]) - targets[rows]).square() * given[rows]
                optimizer.zero_grad()
                (errors.sum(dim=1) / 2).mean().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return dict(model.state_dict())


@pytest.mark.parametrize("optimizer", OPTIMISERS)
def test_one_participant_gives_the_model_of_a_plain_loop(tmp_path: Path, small: dict[str, Any], optimizer: str) -> None:
    training = {"optimizer": optimizer, "learning_rate": 0.01, "weight_decay": 0.05, "epochs": 2, "decay": 0.1}
    plan = load_plan({**small, "training": {**training, "batch_size": 64}, "participants": small["participants"][:1]})
    expected = by_hand(plan)
    for name, found in (("one of one", simulate(plan, out=tmp_path / "a")), ("train", train(plan, out=tmp_path / "b"))):
        for key, value in found.load_model().state_dict().items():
            torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6, msg=f"{name}: {key}")
