"""The contract of aggregation rules: pure, indifferent to order, exact on equal replies, bounded under liars."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from astrofed.server.aggregation.base import Combination, Coordinatewise, Mixing, Rule
from astrofed.server.aggregation.pipeline import Pipeline
from astrofed.server.aggregation.rules_centre import Mean
from astrofed.shared.plan import Named, check_options
from astrofed.testing.contract import ContractBroken, expect, finite

COORDINATES = 41
LARGEST_N = 60
FAR = 1e6  # liars' distance, in honest spreads
DRIFT = 100.0  # how far a result may then lie from the honest replies' mean, in honest spreads
Floats = NDArray[np.float64]


def check_rule(cls: Any, options: dict[str, Any]) -> list[str]:
    """Run the contract tests on a rule, alone or before the mean, and return what was seen to hold."""
    rule: Rule = cls(check_options(cls.Options, Named(name=cls.__name__, options=options), "strategy"))
    seen = [_conditions(rule)]
    if getattr(rule, "trusts_one", False):  # its shares come from a run, which names the trusted participant
        return [*seen, "not tested alone: the rule measures the others by one trusted participant"]
    n = max(rule.minimum_replies(0) or 0, 7)
    rng = np.random.default_rng(7)
    replies = rng.standard_normal((n, COORDINATES))
    kept = replies.copy()
    result = _aggregate(rule, replies, 0)
    seen.append(expect(finite(result), "the result of finite replies is finite", f"{result[:4]} …"))
    seen.append(expect(bool((replies == kept).all()), "replies are only read", "a reply was changed"))
    again = _aggregate(rule, replies, 0)
    seen.append(expect(bool((again == result).all()), "the same replies give the same model", "another model"))
    if rule.seeded(1) is rule:
        order = rng.permutation(n)
        moved = float(np.abs(_aggregate(rule, replies[order], 0) - result).max())
        seen.append(expect(moved < 1e-5, "the order of replies does not matter", f"a difference of {moved:.2g}"))
    if not rule.about_model:
        same = float(np.abs(_aggregate(rule, np.tile(replies[:1], (n, 1)), 0) - replies[0]).max())
        seen.append(expect(same < 1e-5, "equal replies give that reply", f"a difference of {same:.2g}"))
    return [*seen, *_liars(rule, rng)]


def _conditions(rule: Rule) -> str:
    needs = [rule.minimum_replies(f) for f in range(5)]
    known = [need for need in needs if need is not None]
    orderly = needs[: len(known)] == known and known == sorted(known)
    least = 0 if isinstance(rule, Mixing) else 1  # after a mixing stage it is the rule that has to withstand the liars
    return expect(
        orderly and all(need > f * least for f, need in enumerate(known)),
        "minimum_replies(f) is more than f, never falls as f grows, and stays None once it is None",
        f"{needs} for f = 0 to 4",
    )


def _liars(rule: Rule, rng: np.random.Generator) -> list[str]:
    need = rule.minimum_replies(1)
    if need is None:
        return [f"says itself that it {rule.limit}"]
    if isinstance(rule, Mixing):
        return []  # what liars can do is the business of the rule that comes after
    if need > LARGEST_N:
        return [f"not tested with a liar: it needs {need} replies for one"]
    replies = rng.standard_normal((max(need, 9), COORDINATES))
    honest = replies[1:].mean(axis=0)
    for direction in (1.0, -1.0):
        replies[0] = direction * FAR
        drift = float(np.abs(_aggregate(rule, replies, 1) - honest).max())
        expect(drift < DRIFT, "one liar, however far away, moves the model a bounded way", f"it moved {drift:.3g}")
    return ["one liar, however far away, moves the model a bounded way"]


def _aggregate(rule: Rule, replies: Floats, f: int) -> Floats:
    if isinstance(rule, Mixing):
        pipeline = Pipeline("tested", (rule,), Mean(Mean.Options()), 0)
    elif isinstance(rule, Combination | Coordinatewise):
        pipeline = Pipeline("tested", rule.before(), rule, f)
    else:
        raise ContractBroken("broken: a rule derives from Mixing, Combination or Coordinatewise; seen: none of them")
    model = {"w": np.zeros(COORDINATES)}
    result = pipeline.seeded(5).aggregate(model, [{"w": reply} for reply in replies])
    return np.asarray(result.arrays["w"])
