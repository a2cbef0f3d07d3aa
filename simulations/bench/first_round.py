"""How long a new Python process takes to a plan's first round: `python -m …first_round PLAN.json SPAWNED_AT`.

Prints JSON: seconds from the call of `simulate` to the end of the first round, and from the start of the process, which
adds Python's own start and the import of `simulate`. What a plan's task imports is in both.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from astrofed.shared.plan import Plan
    from astrofed.shared.record import Round, Start


def measure_first_round(plan: "Plan") -> tuple[float, float]:
    """Start a process that runs a plan; return seconds to its first round, from the call and from the start.

    Raises:
        subprocess.CalledProcessError: the process failed; what it wrote to the standard error has been passed on.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        path.write_text(plan.to_json())
        command = [sys.executable, "-m", "astrofed.simulations.bench.first_round", str(path), repr(time.time())]
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


def main(path: Path, spawned: float) -> None:
    """Run the plan and print what was measured."""
    from astrofed.simulations.bench.work import PLUGINS
    from astrofed.simulations.simulate import simulate

    watch = _FirstRound()
    called = time.time()
    simulate(json.loads(path.read_text()), out=path.parent / "run", plugins=PLUGINS, observer=watch)
    sys.stdout.write(json.dumps({"call": watch.done - called, "process": watch.done - spawned}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
