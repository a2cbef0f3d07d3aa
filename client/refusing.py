"""Refusals: what a site answers where it gives no answer. Their words are of plan, policy and counts, never of data.

A site with a policy says no more than that: of its own errors those whose text is known to hold nothing of the data,
and of all others only that there was one. The whole text goes to the site's own log.
"""

import logging

from astrofed.client.privacy.mistakes import BudgetSpent, TurnUsed
from astrofed.client.privacy.refusals import CouplesUnits, KeepsData, NoTurn, NotWithPrivacy, WrongPrivacyUnit
from astrofed.client.site import Site
from astrofed.shared.errors import UserMistake
from astrofed.shared.plan import PlanError
from astrofed.shared.privacy.accounting import BudgetUnreachable
from astrofed.shared.registry import UnknownPlugin

LOG = logging.getLogger("astrofed.site")
_LONGEST = 2000  # characters of a reason


class Refused(UserMistake):
    """The site does not do what it is asked for; base of the following."""


class NotAdmitted(Refused):
    """A plan asks for more than the site's policy allows."""


class UnknownRequest(Refused):
    """A message asks for something that no handler knows, or can't be read."""


class Withheld(Refused):
    """What a handler made may not leave the site."""


_SAID = (
    Refused,
    PlanError,
    UnknownPlugin,
    BudgetSpent,
    BudgetUnreachable,
    TurnUsed,
    NoTurn,
    CouplesUnits,
    NotWithPrivacy,
    KeepsData,
    WrongPrivacyUnit,
)


def reason(error: Exception, site: Site) -> str:
    """Return what a coordinator is told of an error, and note the whole of it in the site's log.

    Without a policy that is the error's text. With one, errors that a plug-in raised are not told, whatever their type.
    """
    if site.policy is None:
        return str(error)
    LOG.warning("%s: %s: %s", site.name, type(error).__name__, error)
    if isinstance(error, _SAID) and _is_ours(error):
        return _without_paths(str(error), site)[:_LONGEST]
    return "the site could not do it, and its policy keeps the details; its operator finds them in the site's log"


def _is_ours(error: BaseException) -> bool:
    """Whether code of this package raised the error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("astrofed.")


def _without_paths(text: str, site: Site) -> str:
    for path, name in ((site.data, "its data"), (site.home, "its home")):
        text = text.replace(str(path), name) if path is not None else text
    return text
