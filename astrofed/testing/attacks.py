"""The contract of attacks: pure functions of what the attacker knows and of the seed, which only read others' work."""

from typing import Any

import numpy as np
import torch

from astrofed.shared.plan import Named, check_options
from astrofed.simulations.attack import Attack, Scene
from astrofed.testing.contract import expect


def check_attack(cls: Any, options: dict[str, Any]) -> list[str]:
    """Run the contract tests on an attack and return what was seen to hold."""
    attack: Attack = cls(check_options(cls.Options, Named(name=cls.__name__, options=options), "attack"))
    if attack.poisons_data:
        return [_poison(attack.corrupt_inputs, "inputs"), _poison(attack.corrupt_targets, "targets")]
    first, second = _scene(), _scene()
    with np.errstate(all="ignore"):
        one, two = attack.forge(first), attack.forge(second)
    kept = _scene()
    untouched = all(
        (model[name] == other[name]).all()
        for model, other in zip((first.own, *first.honest), (kept.own, *kept.honest), strict=True)
        for name in model
    )
    seen = [expect(untouched, "models that the attacker sees are only read", "one was changed")]
    if one is None or two is None:
        alike = one is two
    else:
        alike = set(one.arrays) == set(two.arrays) and all(
            np.array_equal(one.arrays[name], two.arrays[name], equal_nan=one.arrays[name].dtype.kind in "fc")
            for name in one.arrays
        )
    return [*seen, expect(alike, "the same scene and seed give the same forgery", "two different ones")]


def _poison(corrupt: Any, what: str) -> str:
    values = torch.linspace(0.0, 1.0, 24).reshape(4, 6)
    given = values.clone()
    result = corrupt(given)
    return expect(
        result.shape == values.shape and result.dtype == values.dtype,
        f"corrupted {what} keep their shape and type",
        f"{list(result.shape)} of {result.dtype}",
    )


def _scene() -> Scene:
    rng = np.random.default_rng(3)

    def model() -> dict[str, Any]:
        return {"weight": rng.standard_normal((4, 3)).astype(np.float32), "steps": np.array(5)}

    return Scene(
        round=1,
        reference=model(),
        own=model(),
        metrics={"loss": 0.5, "num-examples": 32},
        honest=tuple(model() for _ in range(6)),
        attackers=1,
        rng=np.random.default_rng(11),
    )
