"""A site's process that goes on with a run clips by the norm at which the one before had arrived."""

from pathlib import Path

import torch

from astrofed.client.privacy.protection import Protection
from astrofed.client.privacy.units import Rows
from astrofed.client.site import Site
from astrofed.client.task import TrainInstruction
from astrofed.shared.models.mlp import MLP
from astrofed.shared.plan import load_plan


def test_the_norm_goes_on_where_it_was(tmp_path: Path) -> None:
    privacy = {"unit": "row", "noise_multiplier": 1.0, "delta": 1e-3, "clipping": "adaptive", "clipping_norm": 50.0}
    plan = load_plan({"name": "p", "rounds": 9, "task": "t", "model": "m", "privacy": privacy,
                      "training": {"batch_size": 20, "max_steps": 5, "optimizer": "sgd"},
                      "participants": [{"name": "here", "data": "bundled:x"}]})  # fmt: skip
    inputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    rows = Rows((inputs, inputs[:, :2]), lambda model, batch: (model(batch[0]) - batch[1]).square().mean())
    site = Site("here", tmp_path / "data", home=tmp_path)

    def go_on(number: int) -> tuple[float, float]:
        """A new process's round: the norm with which the round before began, and that at this one's end."""
        protection = Protection(plan, site, "f" * 64, "row", 20)
        before = protection._account.clipping_norm() or 50.0
        protection.train(MLP(3, 2, hidden=(4,)), rows, TrainInstruction(round=number, seed=1))
        assert protection._clipping is not None
        return before, protection._clipping.norm

    first = Protection(plan, site, "f" * 64, "row", 20)
    for number in (1, 2, 3):
        first.train(MLP(3, 2, hidden=(4,)), rows, TrainInstruction(round=number, seed=1))
    before, after = go_on(4)
    assert after < before < 50.0 and before == go_on(5)[0]
