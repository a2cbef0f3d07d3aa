"""What a site's policy has to do with spending: a dataset's budget for all runs, and metrics that cost something."""

from collections.abc import Callable, Sequence

from astrofed.client.privacy.spending import Budget
from astrofed.client.site import Site
from astrofed.shared.plan import Plan
from astrofed.shared.privacy.events import Event


def lifetime(site: Site) -> Budget | None:
    """Return what all runs together may spend on a site's data; None for a site without a policy."""
    if site.policy is None:
        return None
    rules = site.policy.rules(site.data)
    return Budget(rules.epsilon, rules.delta)


def besides(plan: Plan, site: Site) -> Callable[[int], Sequence[Event]]:
    """Return what tells the noisy metrics that a run will still release from a round on, as its plan evaluates."""
    noise = site.policy.rules(site.data).noise if site.policy is not None else None

    def events(first: int) -> Sequence[Event]:
        count = sum(_evaluates(plan, number) for number in range(first, plan.rounds + 1))
        return [Event(noise.multiplier, 1.0, count)] if noise is not None and count else []

    return events


def _evaluates(plan: Plan, number: int) -> bool:
    return number % plan.evaluate_every == 0 or number == plan.rounds
