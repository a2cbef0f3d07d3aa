"""What a planned run would take of the privacy that a site's ledger leaves; nothing is spent by asking."""

from collections.abc import Sequence
from dataclasses import dataclass

from astrofed.client.app import open_task
from astrofed.client.privacy.dpsgd import sampling
from astrofed.client.privacy.ledger import Ledger
from astrofed.client.privacy.lifetime import besides, lifetime
from astrofed.client.privacy.mistakes import BudgetSpent
from astrofed.client.privacy.spending import Forecast, forecast
from astrofed.client.site import Site
from astrofed.shared.plan import Plan, PlanError
from astrofed.shared.privacy.accounting import BudgetUnreachable


@dataclass(frozen=True)
class Planned:
    """What a plan's run would take of one participant's data, or why it would be refused."""

    participant: str
    dataset: str
    forecast: Forecast | None
    refused: str | None


def planned(plan: Plan, sites: Sequence[Site], ledger: Ledger) -> list[Planned]:
    """Return what a plan's whole run would take of the sites' data, after all that `ledger` says was spent on them.

    Sites whose data the ledger doesn't know are left out, unless it knows none of them.

    Raises:
        PlanError: the plan has no [privacy] section, or its task can't train privately.
        UserMistake: a site's data can't be read or aren't fit for the plan.
    """
    if plan.privacy is None:
        raise PlanError(f"plan {plan.name!r} has no [privacy] section: what it would cost has no bound")
    summaries = [open_task(plan, site).summary() for site in sites]
    known = set(ledger.book().datasets) & {summary.fingerprint for summary in summaries}
    found = []
    for site, summary in zip(sites, summaries, strict=True):
        if known and summary.fingerprint not in known:
            continue
        rate, steps = sampling(plan.training, summary.num_units)
        try:
            cost = forecast(
                ledger.events(summary.fingerprint),
                plan.privacy,
                rate,
                plan.rounds * steps,
                summary.fingerprint,
                lifetime=lifetime(site),
                besides=besides(plan, site)(0),
            )
        except (BudgetSpent, BudgetUnreachable) as refusal:
            found.append(Planned(summary.name, summary.fingerprint, None, str(refusal)))
        else:
            found.append(Planned(summary.name, summary.fingerprint, cost, None))
    return found
