"""What can be wrong with a privacy ledger or a budget, one class each.

A `LedgerInDoubt` stops all training at the site until its operator has decided: restore the right file, or accept what
there is with `astrofed client ledger HOME --accept`, which is written into the ledger.
"""

from astrofed.shared.errors import AstrofedError, UserMistake


class BudgetSpent(UserMistake):
    """More would be spent than is left of a dataset's privacy budget."""


class TurnUsed(UserMistake):
    """Noise that sites share should hide a second message, which would show both."""


class LedgerUnusable(UserMistake):
    """The ledger can't be read or written; without it nothing may be spent."""


class NoLedger(UserMistake):
    """There is no ledger where one is to be looked at."""


class AlreadySettled(AstrofedError):
    """A reservation is to be settled for another number of steps than it was settled for."""


class LedgerInDoubt(UserMistake):
    """The ledger is not the one that was signed last; base of the following."""


class LedgerCopied(LedgerInDoubt):
    """The ledger is another file than the one that was signed: a copy, or a backup that was put in its place."""


class LedgerCut(LedgerInDoubt):
    """Rows that were signed are no longer there: the file was truncated, rolled back or removed."""


class LedgerEdited(LedgerInDoubt):
    """A row was changed, added or taken out by something else than this software with this key."""


class LedgerUnsigned(LedgerInDoubt):
    """The signed head or its key is missing or does not belong to this ledger."""
