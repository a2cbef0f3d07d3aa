"""Parts of a plan: the plans that a search or an evolution makes of the one that was signed, and how a site knows them.

A coordinator signs a plan once, when it is submitted. What a candidate or a member is trained by is another plan, which
no signature covers; a site lets it in because nothing in it goes beyond what was signed: the same task, data, privacy
and limits, and values from the lists or ranges that the signed plan gives.
"""

from collections.abc import Mapping
from typing import Any

from astrofed.shared.errors import UserMistake
from astrofed.shared.overrides import BadOverride, get_key, set_key
from astrofed.shared.plan import Plan, PlanError, load_plan
from astrofed.shared.subset import without_absent

FREE = ("name", "seed", "evaluate_every", "strategy")
"""What says nothing of what a site does with its data."""


class NotAPart(UserMistake):
    """A plan that goes beyond the signed plan that it came with."""


def check_part(whole: Plan, part: Plan) -> None:
    """See that a plan is one that a search or an evolution may make of a signed plan.

    Raises:
        NotAPart: it isn't; the message names the first key that differs.
    """
    if part == whole:
        return
    if whole.mode not in ("nas", "evolution"):
        raise NotAPart(f"plan {part.name!r} is not the one that was signed, and mode {whole.mode!r} has no parts")
    given = part.to_dict()
    if part.model.name == "mixture" and whole.model.name != "mixture":
        _check_mixture(whole, given)
        return
    _check_rounds(whole, part)
    wanted = _wanted(whole, given)
    for key in sorted(wanted.keys() | given.keys()):
        if wanted.get(key) != given.get(key):
            raise NotAPart(f"plan {part.name!r} is no part of the signed plan {whole.name!r}: its {key!r} is another")


def _wanted(whole: Plan, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the signed plan with all that a part may choose for itself as it is in the part."""
    data = whole.to_dict()
    data |= {key: given[key] for key in FREE if key in given} | {"rounds": given["rounds"]}
    for key in _chosen(whole):
        value = _value(given, key)
        if not _allowed(whole, key, value):
            raise NotAPart(f"the signed plan {whole.name!r} does not let {key!r} be {value!r}")
        set_key(data, key, value)
    if given["mode"] in ("federated", "single"):
        data["mode"] = given["mode"]
        data.pop("search", None)
        data.pop("evolution", None)
    if whole.mode == "evolution" and (given["training"]["decay"], given["training"]["warmup"]) == (1.0, 0):
        data["training"] |= {"decay": 1.0, "warmup": 0}  # a member's rate evolves and has no schedule
    names = {each["name"] for each in given["participants"]}
    data["participants"] = [each for each in data["participants"] if each["name"] in names]
    return without_absent(data)


def _check_rounds(whole: Plan, part: Plan) -> None:
    most = max(whole.rounds, whole.evolution.rounds if whole.evolution is not None else 0)
    if part.rounds > most:
        raise NotAPart(f"plan {part.name!r} has {part.rounds} rounds; the signed plan {whole.name!r} has {most}")


def _check_mixture(whole: Plan, given: Mapping[str, Any]) -> None:
    """See that each network in a mixture would be a part by itself."""
    if whole.search is None or whole.search.algorithm != "differentiable":
        raise NotAPart(f"the signed plan {whole.name!r} trains no mixture of networks")
    for section in given["model"]["candidates"]:
        try:
            alone = load_plan({**given, "model": section})
        except PlanError as error:
            raise NotAPart(f"a network of the mixture can't be read: {error}") from error
        if alone.model.name == "mixture":
            raise NotAPart("a mixture holds a mixture")
        check_part(whole, alone)


def _chosen(whole: Plan) -> list[str]:
    return list(whole.search.space if whole.search is not None else whole.evolution.keys if whole.evolution else ())


def _allowed(whole: Plan, key: str, value: Any) -> bool:
    if whole.search is not None:
        return value in [list(each) if isinstance(each, tuple) else each for each in whole.search.space[key]]
    assert whole.evolution is not None
    bounds = whole.evolution.keys[key]
    number = isinstance(value, int if bounds.whole else int | float) and not isinstance(value, bool)
    return number and bool(bounds.low <= value <= bounds.high)


def _value(data: Mapping[str, Any], key: str) -> Any:
    try:
        return get_key(data, key)
    except BadOverride:
        return None
