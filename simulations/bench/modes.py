"""`astrofed bench modes`: the modes against the literature and against bare loops, in one run on this machine."""

from collections.abc import Callable
from typing import Any

from astrofed.simulations.bench.architectures import SEEDS, search_rows
from astrofed.simulations.bench.evolution import rastrigin_rows
from astrofed.simulations.bench.evolution_schedule import schedule_rows
from astrofed.simulations.bench.meta_sinusoid import ITERATIONS, iteration_rows, sinusoid_rows
from astrofed.simulations.bench.meta_worlds import world_rows
from astrofed.simulations.bench.modes_result import ModeRow, ModesResult
from astrofed.simulations.bench.result import MARK, shown, this_machine
from astrofed.simulations.bench.single import single_rows

ALGORITHMS: dict[str, dict[str, Any]] = {
    "fomaml": {"algorithm": "fomaml"},
    "fomaml, begun from the federated model": {"algorithm": "fomaml", "warm_rounds": 3},
    "maml, begun from the federated model": {"algorithm": "maml", "warm_rounds": 3, "inner_rate": 0.1},
}


def run_modes_bench(*, quick: bool, meta: bool = False, done: Callable[[str], None] = print) -> ModesResult:
    """Measure; `quick` has fewer iterations, seeds and rounds, `meta` only what mode 'meta' is judged by.

    The targets of the sinusoids hold for their full number of iterations and are absent from a quick run, as are the
    parts that train on worlds. `done` hears of each target as soon as it is known.
    """
    machine = this_machine()
    parts: list[Callable[[], list[ModeRow]]] = [
        lambda: iteration_rows(rounds=3 if quick else 9),
        lambda: sinusoid_rows(1000 if quick else ITERATIONS, many=2000 if quick else 10_000),
    ]
    if not quick:
        parts.append(lambda: world_rows(4, ALGORITHMS))
    if not meta:
        parts += [
            lambda: single_rows(7 if quick else 17),
            lambda: search_rows(10 if quick else SEEDS),
            lambda: rastrigin_rows(10 if quick else 40),
        ]
    if not meta and not quick:
        parts.append(lambda: schedule_rows(9))
    rows: list[ModeRow] = []
    for part in parts:
        found = part()
        rows += found
        for row in found:
            for target in row.targets:
                done(f"{MARK[target.met]} {row.mode}, {row.work}: {target.target} ({shown(target.measured) or '-'})")
    return ModesResult(machine, tuple(rows), {"quick": quick, "meta": meta})
