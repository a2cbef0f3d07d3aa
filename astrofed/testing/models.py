"""The contract of models: made from a plan alone, saved without pickle, trained and resumed like any other."""

import safetensors.torch
import torch
from torch import nn

from astrofed.shared.models.base import build_model
from astrofed.shared.plan import Plan, plan_from_json
from astrofed.testing.contract import expect, finite, run, scratch, shortened


def check_model(plan: Plan) -> list[str]:
    """Run the contract tests on a plan's model and return what was seen to hold."""
    state = torch.get_rng_state()
    first, second = build_model(plan), build_model(plan_from_json(plan.to_json()))
    seen = [
        expect(_alike(first, second), "the plan alone makes the model, wherever it has travelled", "other weights"),
        expect(torch.equal(state, torch.get_rng_state()), "torch's global generator is left as it was", "it moved on"),
    ]
    values = first.state_dict()
    seen.append(expect(all(finite(v) for v in values.values()), "initial weights are finite", "one is not"))
    addresses = [value.data_ptr() for value in values.values() if value.numel()]
    seen.append(expect(len(set(addresses)) == len(addresses), "no two weights share memory", "two do"))
    saved = safetensors.torch.load(safetensors.torch.save({k: v.contiguous() for k, v in values.items()}))
    back = all(torch.equal(saved[name], value) for name, value in values.items())
    seen.append(expect(back, "weights come back from safetensors", "other weights"))
    short = shortened(plan, rounds=1)
    with scratch() as folder:
        after = run(short, folder / "run").load_model()
    before = build_model(short)
    moved = [name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])]
    seen.append(expect(bool(moved), "a round of the plan changes the weights", "none has changed"))
    coupled = sorted(
        {type(part).__name__ for part in first.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}
    )
    if coupled:
        seen.append(f"can't train with [privacy]: {', '.join(coupled)} couples samples")
    return seen


def _alike(first: nn.Module, second: nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)
