"""A mixture of networks: shares and networks are trained in turn."""

from typing import Any

import torch

from astrofed.shared.models.base import build_model
from astrofed.shared.models.mixture import Mixture
from astrofed.shared.plan import load_plan


def _mixture(small: dict[str, Any]) -> Mixture:
    candidates = [{"name": "mlp", "hidden": [4]}, {"name": "mlp", "hidden": [16]}]
    model = build_model(load_plan(small | {"model": {"name": "mixture", "candidates": candidates}}))
    assert isinstance(model, Mixture)
    return model


def test_equal_shares_give_the_mean(small: dict[str, Any]) -> None:
    model = _mixture(small).eval()
    (rows,) = (part.example({}, 1) for part in model.signature())
    outputs = [network(rows) for network in model.networks]
    torch.testing.assert_close(model(rows), (outputs[0] + outputs[1]) / 2)


def test_networks_and_shares_are_trained_in_turn_from_the_beginning_of_each_round(small: dict[str, Any]) -> None:
    model = _mixture(small).train()
    (rows,) = (part.example({}, 1) for part in model.signature())
    for _ in range(2):  # an odd number of batches leaves no trace in the next round
        model.begin_round()
        for of_shares in (False, True, False):
            model.zero_grad(set_to_none=True)
            model(rows).square().mean().backward()
            assert (model.preferences.grad is not None) == of_shares
            assert all((weight.grad is None) == of_shares for weight in model.networks.parameters())
