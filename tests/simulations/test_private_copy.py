"""A private run's folder that was copied: the sites' ledgers in it know that, and nothing is trained."""

import shutil
from pathlib import Path

import pytest

from astrofed.client.privacy.ledger import Ledger
from astrofed.server.enrolment import NotEnrolled
from astrofed.server.federation import Interrupted
from astrofed.shared.plan import Plan
from astrofed.shared.record import Round, Start
from astrofed.simulations.bench.utility import digits_plan
from astrofed.simulations.simulate import simulate

pytest.importorskip("sklearn")


class StopsAfterOne:
    """Asks to stop after the first round."""

    def __init__(self) -> None:
        self._stop = False

    def started(self, plan: Plan, start: Start) -> None: ...

    def round_done(self, entry: Round) -> None:
        self._stop = entry.round == 1

    def should_stop(self) -> bool:
        return self._stop


def rows(home: Path) -> int:
    return Ledger(home).book().last


def test_a_copied_run_is_refused_by_every_site_until_its_operator_decides(tmp_path: Path) -> None:
    """Noise is never replayed: had the copy trained, the same rounds would be released twice and counted once each."""
    plan, original, copy = digits_plan(8.0, 1).model_copy(update={"rounds": 3}), tmp_path / "run", tmp_path / "copy"
    with pytest.raises(Interrupted):
        simulate(plan, out=original, observer=StopsAfterOne())
    shutil.copytree(original, copy)
    with pytest.raises(NotEnrolled, match=r"a copy of it.*client ledger .*copy/sites/site_0 --accept"):
        simulate(plan, out=copy, resume=True)
    assert simulate(plan, out=original, resume=True).privacy[0].epsilon <= 8.0
    homes = [copy / "sites" / f"site_{number}" for number in range(3)]
    before = [rows(original / "sites" / home.name) for home in homes]
    assert all(Ledger(home).accept() for home in homes)  # on record, and with all that the copy knows to be spent
    assert all(row.kind != "accept" or "copy" in row.note for row in Ledger(homes[0]).book().accepted)
    simulate(plan, out=copy, resume=True)
    assert [rows(original / "sites" / home.name) for home in homes] == before
