"""`astrofed bench modes`: the modes against the literature and against bare loops, in one run on this machine."""

from typing import Any

from astrofed.simulations.bench.architectures import SEEDS, search_rows
from astrofed.simulations.bench.evolution import rastrigin_rows
from astrofed.simulations.bench.meta_sinusoid import ITERATIONS, iteration_rows, sinusoid_rows
from astrofed.simulations.bench.meta_worlds import world_rows
from astrofed.simulations.bench.modes_result import ModeRow, ModesResult
from astrofed.simulations.bench.result import this_machine
from astrofed.simulations.bench.single import single_rows

ALGORITHMS: dict[str, dict[str, Any]] = {
    "maml": {"algorithm": "maml"},
    "fomaml": {"algorithm": "fomaml"},
    "anil": {"algorithm": "anil", "inner_rate": 0.1},
}


def run_modes_bench(*, quick: bool, meta: bool = False) -> ModesResult:
    """Measure; `quick` has fewer iterations, worlds' seeds and rounds, `meta` only what mode 'meta' is judged by.

    The targets of the sinusoids hold for their full number of iterations and are absent from a quick run.
    """
    machine = this_machine()
    rows: list[ModeRow] = iteration_rows(rounds=3 if quick else 9)
    rows += sinusoid_rows(1000 if quick else ITERATIONS, many=2000 if quick else 10_000)
    if not quick:
        rows += world_rows(3, ALGORITHMS)
    if not meta:
        rows += single_rows(7 if quick else 17)
        rows += search_rows(10 if quick else SEEDS)
        rows += rastrigin_rows(10 if quick else 40)
    return ModesResult(machine, tuple(rows), {"quick": quick, "meta": meta})
