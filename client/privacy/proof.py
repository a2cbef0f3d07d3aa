"""Proof that a private round was paid for: the ledger has its reservation, settled, made since the round began."""

from astrofed.client.privacy.ledger import Ledger
from astrofed.client.refusing import Withheld
from astrofed.client.site import Site
from astrofed.shared.plan import Plan
from astrofed.shared.privacy.accounting import epsilon
from astrofed.shared.privacy.events import Event


class SpendingProof:
    """Watches a site's ledger from outside of the task that trains, whichever plug-in that is."""

    def __init__(self, plan: Plan, site: Site) -> None:
        """The plan has a [privacy] section, the site a home."""
        assert plan.privacy is not None and site.home is not None
        self._plan, self._delta, self._ledger = plan, plan.privacy.delta, Ledger(site.home)

    def mark(self) -> int:
        """Return where the ledger ends now."""
        return self._ledger.book().last

    def check(self, mark: int, round_number: int, dataset: str) -> list[Event]:
        """See to it that this round's training on the dataset is in the ledger beyond `mark`, and settled.

        Returns all that was ever spent on the dataset.

        Raises:
            Withheld: it is not.
        """
        book = self._ledger.book()
        paid = any(
            number > mark and (row.run, row.round, row.dataset) == (self._plan.name, round_number, dataset)
            for number, row in book.reserved.items()
            if number in book.settled
        )
        if not paid:
            raise Withheld(
                f"the ledger knows nothing of private training in round {round_number}, so its update is withheld; the "
                f"task {self._plan.task.name!r} must train by way of astrofed.client.privacy.protection"
            )
        return [row.event for row in book.spending(dataset)]

    def epsilon(self, spent: list[Event]) -> float:
        """Return what that comes to at the plan's delta."""
        return epsilon(spent, self._delta)
