"""How long a new Python process takes to the first round of a work: `python -m …first_round WORK CLIENTS SPAWNED_AT`.

Prints JSON: seconds from the call of `simulate` to the end of the first round, and from the start of the process, which
adds Python's own start and the import of `simulate`. What a plan's task and strategy import is in both.
"""

import json
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from astrofed.simulations.bench.work import PLUGINS, Work, plan_for

if TYPE_CHECKING:
    from astrofed.shared.plan import Plan
    from astrofed.shared.record import Round, Start


def measure_first_round(work: Work, clients: int) -> tuple[float, float]:
    """Start a process that runs one round of a work; return seconds to its end, from the call and from the start.

    Raises:
        subprocess.CalledProcessError: the process failed; what it wrote to the standard error has been passed on.
    """
    command = [sys.executable, "-m", "astrofed.simulations.bench.first_round", work, str(clients), repr(time.time())]
    with tempfile.TemporaryDirectory() as folder:  # not in a checkout, whose folders would hide the package's
        ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=folder, text=True)
    found = json.loads(ended.stdout)
    return found["call"], found["process"]


class _FirstRound:
    """Notes when the first round is done."""

    def __init__(self) -> None:
        self.done = 0.0

    def started(self, plan: "Plan", start: "Start") -> None:
        """Nothing is noted."""

    def round_done(self, entry: "Round") -> None:
        """Note the first round."""
        if entry.round == 1:
            self.done = time.time()

    def should_stop(self) -> bool:
        """Never."""
        return False


def main(work: Work, clients: int, spawned: float) -> None:
    """Run the work's plan and print what was measured."""
    from astrofed.simulations.simulate import simulate

    watch = _FirstRound()
    called = time.time()
    with tempfile.TemporaryDirectory() as folder:
        simulate(plan_for(work, clients, 1), out=f"{folder}/run", plugins=[PLUGINS[work]], observer=watch)
    sys.stdout.write(json.dumps({"call": watch.done - called, "process": watch.done - spawned}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))  # type: ignore[arg-type]
