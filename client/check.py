"""Would this site take part in a plan: what is asked, what is refused and why, what it would cost; spends nothing."""

from dataclasses import dataclass, replace

from astrofed.client.admission import objections
from astrofed.client.privacy.ledger import FILE, Ledger
from astrofed.client.privacy.ledger_plans import Planned, planned
from astrofed.client.site import Site
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import Plan


@dataclass(frozen=True)
class Examination:
    """What a plan asks of one site and what the site would say."""

    site: str
    asked: tuple[str, ...]
    refused: tuple[str, ...]  # why; none: it would take part
    cost: Planned | None  # of private training


def examine(plan: Plan, site: Site) -> Examination:
    """Return what a site would say to a plan. Its data are read only where the policy has nothing against the plan.

    Raises:
        LedgerInDoubt, LedgerUnusable: the site's ledger would stop all training.
    """
    refused, cost = objections(plan, site), None
    if not refused:
        dry = replace(site, home=None)  # nothing is written; what was spent comes from the ledger below
        known = site.home is not None and (site.home / FILE).exists()
        ledger = Ledger(site.home if known else None)
        ledger.book()
        try:
            if plan.privacy is not None and site.role == "train":
                (cost,) = planned(plan, [dry], ledger)
                refused = [cost.refused] if cost.refused is not None else []
            else:
                _read(plan, dry)
        except UserMistake as mistake:
            refused = [str(mistake)]
    return Examination(site.name, tuple(_asked(plan, site)), tuple(refused), cost)


def _read(plan: Plan, site: Site) -> None:
    from astrofed.client.app import open_task

    open_task(plan, site).summary()


def _asked(plan: Plan, site: Site) -> list[str]:
    verb = "train" if site.role == "train" else "evaluate"
    lines = [
        f"to {verb} in mode {plan.mode!r}: task {plan.task.name!r}, model {plan.model.name!r}, {plan.rounds} rounds"
    ]
    privacy = plan.privacy
    if privacy is None:
        return [*lines, "without differential privacy"]
    amount = (
        f"epsilon {privacy.epsilon:g}" if privacy.epsilon else f"a noise multiplier of {privacy.noise_multiplier:g}"
    )
    lines.append(f"with differential privacy for each {privacy.unit}: {amount}, delta {privacy.delta:g}")
    if privacy.shared_noise is not None:
        others = ", ".join(each.name for each in plan.trainers if each.name != site.name)
        lines.append(
            f"the noise shared with {others}: epsilon holds where at most {privacy.shared_noise.colluding} of all "
            "pass on what they know"
        )
    return lines
