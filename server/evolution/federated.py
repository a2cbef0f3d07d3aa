"""Members trained by the one federation, each generation of a member as a run in a folder of its own.

A member begins with its parent's final weights. It is charged to its island's ledgers as the run that it is. What is
done is done: a run that was killed goes on where it was.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from astrofed.server.beginning import STATISTICS, Beginning
from astrofed.server.checkpoint import MODEL, load_arrays
from astrofed.server.enrolment import Statistics
from astrofed.server.evolution.lives import Life, Place
from astrofed.server.evolution.plans import islands_of, look_plan, member_plan
from astrofed.server.federation import Interrupted, NobodyAccepted, Observer
from astrofed.server.record import read_record
from astrofed.server.search.federated import NotEvaluated, Until
from astrofed.shared.plan import Plan

ENDLESS = 2**31
RunFrom = Callable[[Plan, Path, Observer, Beginning], None]
"""Runs a plan in a folder from a beginning, going on where it was."""


class Sites:
    """The sites of a plan, who look at models all together and train members on islands."""

    def __init__(self, plan: Plan, folder: Path, run: RunFrom, observer: Observer) -> None:
        self._plan, self._folder, self._run, self._observer = plan, folder, run, observer
        self._islands: Sequence[Sequence[str]] = islands_of(plan)
        self._statistics: Statistics | None = None

    def train(self, place: Place, values: Mapping[str, int | float], parent: Place | None) -> float | None:
        """Train a member on its island; return its loss there, None where no update of it could be used.

        Raises:
            Interrupted: the observer asked to stop.
        """
        plan = member_plan(self._plan, values, self._islands[place.island - 1], place)
        folder = self.folder(place)
        try:
            self._run(plan, folder, Until(ENDLESS, self._observer), self.beginning(parent))
        except NobodyAccepted:
            return None
        rounds = read_record(folder)[1][1:]
        return None if all(entry.skipped for entry in rounds) else rounds[-1].loss

    def look(self, life: Life) -> float:
        """Have all training sites evaluate a member; return the mean loss on their held-out data."""
        return self._look(self._folder / "all-sites" / str(life.place), life.values, self.beginning(life.place))

    def begin(self, values: Mapping[str, int | float]) -> float:
        """Pool all sites' statistics, with which every member is trained, and return a first model's loss."""
        folder = self._folder / "all-sites" / "before"
        loss = self._look(folder, values, Beginning())
        self._statistics = load_arrays(folder / STATISTICS)
        return loss

    def beginning(self, parent: Place | None) -> Beginning:
        """Return what a member begins with."""
        model = None if parent is None else load_arrays(self.folder(parent) / MODEL)
        return Beginning(model, self._statistics)

    def folder(self, place: Place) -> Path:
        """Return where the run of a member's generation lies."""
        return self._folder / f"island-{place.island:02d}" / f"{place.generation:03d}-{place.member:02d}"

    def _look(self, folder: Path, values: Mapping[str, int | float], beginning: Beginning) -> float:
        try:
            self._run(look_plan(self._plan, values, folder.name), folder, Until(0, self._observer), beginning)
        except Interrupted:
            if self._observer.should_stop():
                raise
        loss = read_record(folder)[1][0].loss
        if loss is None:
            raise NotEvaluated(f"{folder}: no training site could evaluate the model")
        return loss
