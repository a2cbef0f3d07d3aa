"""Admission: whether a site takes part in a plan, decided from the plan and the site's policy before data are read."""

from collections.abc import Collection, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Literal

from astrofed.client.policy import DataRules, Policy
from astrofed.client.refusing import NotAdmitted, UnknownRequest
from astrofed.client.site import Site
from astrofed.shared import registry
from astrofed.shared.plan import Plan, plan_from_json
from astrofed.shared.signed_plan import EXPIRES, ISSUED, PLAN, RUN, SIGNATURE, WHOLE

ALWAYS = frozenset({PLAN, WHOLE, SIGNATURE, RUN, ISSUED, EXPIRES})
"""Settings that any message may carry."""
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
    found = []
    if not policy.allows("modes", plan.mode):
        found.append(f"mode {plan.mode!r} is not among the allowed: {_listed(policy.modes)}")
    found += _plugin(policy, "tasks", plan.task.name)
    return found + _plugin(policy, "models", plan.model.name)


def _plugin(policy: Policy, kind: Literal["tasks", "models"], name: str) -> list[str]:
    if not policy.allows(kind, name):
        return [f"{kind[:-1]} {name!r} is not among the allowed: {_listed(getattr(policy, kind))}"]
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
    if site.home is None and site.role == "train":
        found.append("the site has no home folder, and so no ledger to hold private training to")
    return found


def _hours(rules: DataRules, now: datetime | None) -> list[str]:
    if rules.open_at(now if now is not None else datetime.now()):
        return []
    return [f"requests are answered only during {' and '.join(rules.hours)} of the site's clock"]


def _listed(names: Collection[str]) -> str:
    return ", ".join(names) or "none"
