"""Admission: whether a site takes part in a plan, decided from the plan and the site's policy before data are read."""

from collections.abc import Collection, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Literal

from pydantic import ValidationError

from astrofed.client.policy import DataRules, Policy
from astrofed.client.refusing import NotAdmitted, UnknownRequest
from astrofed.client.site import Site
from astrofed.shared import registry
from astrofed.shared.plan import Named, Plan, plan_from_json
from astrofed.shared.registry import normalise
from astrofed.shared.signed_plan import EXPIRES, ISSUED, PLAN, RUN, SIGNATURE, WHOLE

ALWAYS = frozenset({PLAN, WHOLE, SIGNATURE, RUN, ISSUED, EXPIRES})
"""Settings that any message may carry."""
MIXTURE = "mixture"
"""The model that is made of others (`shared.models.mixture`), by which a differentiable search tries them all."""
_SHOWN = 80  # characters of a coordinator's own words


def objections(plan: Plan, site: Site, now: datetime | None = None) -> list[str]:
    """Return why the site's policy does not allow the plan, a line each; none for a site without a policy.

    `now`: the local time, by default this machine's.
    """
    if site.policy is None:
        return []
    rules = site.policy.rules(site.data)
    return [*_named(plan, site.policy), *_data(plan, site, rules), *_hours(rules, now)]


def admit(text: str, site: Site) -> None:
    """Let a plan (JSON) in, or not.

    Raises:
        NotAdmitted: it asks for more than the site's policy allows.
    """
    if site.policy is None:
        return
    rules, found = _judged(text, site)
    against = [*found, *_hours(rules, None)]
    if against:
        raise NotAdmitted(f"the site's policy refuses the plan: {'; '.join(against)}")


def check_request(settings: Mapping[str, object], known: Collection[str], plan: Plan, site: Site) -> None:
    """Refuse a message that asks for more than its kind of request can, or for a round that the plan doesn't have.

    Raises:
        UnknownRequest: a site with a policy was asked so.
    """
    if site.policy is None:
        return
    unknown = sorted(settings.keys() - ALWAYS - set(known))
    if unknown:
        raise UnknownRequest(
            f"this site doesn't know the setting {shown(unknown[0])}; it knows {', '.join(known) or 'none'}"
        )
    number = settings.get("server-round", 0)
    if not isinstance(number, int) or not 0 <= number <= plan.rounds:
        raise UnknownRequest(f"the plan has {plan.rounds} rounds; there is none of that number")


def shown(text: str) -> str:
    """Return a coordinator's own word as it can stand in a message."""
    return repr(text[:_SHOWN])


@lru_cache(maxsize=256)
def _judged(text: str, site: Site) -> tuple[DataRules, tuple[str, ...]]:
    """Return the rules for a site's data, and what stands against a plan at any time."""
    assert site.policy is not None
    plan, rules = plan_from_json(text), site.policy.rules(site.data)
    return rules, (*_named(plan, site.policy), *_data(plan, site, rules))


def _named(plan: Plan, policy: Policy) -> list[str]:
    found = [] if policy.allows("modes", plan.mode) else [f"mode {plan.mode!r} {_among(policy.modes)}"]
    found += [
        f"mode {mode!r}, which the parts of a plan of mode {plan.mode!r} have, {_among(policy.modes)}"
        for mode in _modes_of_parts(plan)
        if not policy.allows("modes", mode)
    ]
    found += _plugin(policy, "tasks", plan.task.name)
    searched = plan.search.space.get("model.name", ()) if plan.search is not None else ()
    found += [each for name in searched for each in _plugin(policy, "models", str(name))]
    if plan.privacy is not None and normalise(plan.model.name) == MIXTURE:
        found.append("privacy: one unit's part in a mixture of networks is not bounded; train one network")
    return found + ([] if searched else _model(policy, plan.model))


def _modes_of_parts(plan: Plan) -> list[str]:
    """Return the modes of what a search or an evolution sends to sites."""
    if plan.mode == "nas":
        return ["federated" if len(plan.trainers) > 1 else "single"]
    if plan.mode == "evolution" and plan.evolution is not None:
        several = len(plan.trainers) > 1
        islands = ["single"] if plan.evolution.islands or not several else []
        return [*islands, *(["federated"] if several else [])]  # all sites together look at the islands' best
    return []


def _model(policy: Policy, model: Named) -> list[str]:
    """Return what stands against a model; a mixture is let in where each of its networks is."""
    if normalise(model.name) != MIXTURE:
        return _plugin(policy, "models", model.name)
    candidates = model.options.get("candidates")
    try:
        networks = [Named.model_validate(each) for each in candidates] if isinstance(candidates, list | tuple) else []
    except ValidationError:
        networks = []
    if not networks:
        return [f"model {model.name!r} has no list of networks, each of which a policy would have to allow"]
    return list(dict.fromkeys(each for network in networks for each in _model(policy, network)))


def _plugin(policy: Policy, kind: Literal["tasks", "models"], name: str) -> list[str]:
    if not policy.allows(kind, name):
        return [f"{kind[:-1]} {name!r} {_among(getattr(policy, kind))}"]
    if not policy.allows_origin(registry.find(kind, name).origin):
        return [f"{kind[:-1]} {name!r} comes from elsewhere than the plug-ins that are allowed"]
    return []


def _data(plan: Plan, site: Site, rules: DataRules) -> list[str]:
    found = []
    if plan.rounds > rules.max_rounds:
        found.append(f"{plan.rounds} rounds are asked for, at most {rules.max_rounds} are allowed")
    privacy = plan.privacy
    if privacy is None:
        if rules.privacy == "required":
            found.append(
                f"differential privacy is required; give the plan a [privacy] section with epsilon at most "
                f"{rules.epsilon:g} and delta at most {rules.delta:g}"
            )
        return found
    if privacy.epsilon is not None and privacy.epsilon > rules.epsilon:
        found.append(f"epsilon {privacy.epsilon:g} is asked for, at most {rules.epsilon:g} is allowed")
    if privacy.delta > rules.delta:
        found.append(f"delta {privacy.delta:g} is asked for, at most {rules.delta:g} is allowed")
    found += _sharing(plan, site, rules)
    if site.home is None and site.role == "train":
        found.append("the site has no home folder, and so no ledger to hold private training to")
    return found


def _sharing(plan: Plan, site: Site, rules: DataRules) -> list[str]:
    """Return what stands against noise that is shared with the plan's other training participants."""
    if plan.privacy is None or plan.privacy.shared_noise is None or site.role != "train":
        return []
    asked, allowed = plan.privacy.shared_noise.colluding, rules.shared_noise
    if allowed is None:
        return ["noise is to be shared with other sites, which is not allowed (shared_noise)"]
    if asked < allowed.colluding:
        return [
            f"shared noise is to withstand {asked} colluding sites, at least {allowed.colluding} are to be withstood"
        ]
    if rules.max_update_norm is not None:
        return ["updates with shared noise are far longer than without, so max_update_norm can't be held"]
    assert site.policy is not None
    known = {site.name, *(peer.name for peer in site.policy.peers), *(site.peers.public if site.peers else ())}
    return [
        f"noise is to be shared with {shown(each.name)}, whose key is not among the policy's peers"
        for each in plan.trainers
        if each.name not in known
    ]


def _hours(rules: DataRules, now: datetime | None) -> list[str]:
    if rules.open_at(now if now is not None else datetime.now()):
        return []
    return [f"requests are answered only during {' and '.join(rules.hours)} of the site's clock"]


def _among(allowed: Collection[str]) -> str:
    return f"is not among the allowed: {', '.join(allowed) or 'none'}"
