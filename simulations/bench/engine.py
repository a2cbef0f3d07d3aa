"""`astrofed bench engine`: a round of the embedded engine against Flower's simulation runtime, pfl, and a bare loop.

Blocks of rounds of the embedded engine, the bare loop and pfl alternate within one run, so that a busy machine slows
all alike; ratios are medians over such pairs. Flower's runtime starts processes of its own and runs by itself, with the
same apps.
"""

import importlib.util
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from astrofed.shared import registry
from astrofed.shared.plan import Plan
from astrofed.simulations.bench.bare import BareDigits, BareTrivial
from astrofed.simulations.bench.first_round import measure_first_round
from astrofed.simulations.bench.fit import fit_rows
from astrofed.simulations.bench.pfl_peer import PflDigits
from astrofed.simulations.bench.result import BenchResult, Row, Target, this_machine
from astrofed.simulations.bench.stopwatch import RUN, Peer, Stopwatch
from astrofed.simulations.bench.work import PLUGINS, WORKS, Work, plan_for
from astrofed.simulations.simulate import simulate

EMBEDDED, BARE, PFL, FLOWER = "astrofed embedded", "bare loop", "pfl", "Flower simulation (Ray)"
FIFTY = "at least 50 times less overhead a round than Flower's simulation"
MISSING = "not evaluable: pip install 'astrofed[bench,sim]'"


def run_engine_bench(quick: bool) -> BenchResult:
    """Measure; `quick` has fewer rounds, and Flower's runtime with 10 clients only."""
    machine = this_machine()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = fit_rows(repeats=50 if quick else 300)
        for work in WORKS:
            for clients in (10, 100):
                rows += compare(
                    work,
                    clients,
                    rounds=11 if quick else 52,
                    ray_rounds=0 if quick and clients > 10 else (5 if quick else 11),
                    starts=1 if quick else 3,
                    block=3 if quick else 5,
                )
    finally:
        torch.set_num_threads(threads)
    return BenchResult("A round of federated averaging, one thread", machine, tuple(rows), {"quick": quick})


def compare(work: Work, clients: int, *, rounds: int, ray_rounds: int, starts: int, block: int = 1) -> list[Row]:
    """Return the rows of one work for so many clients.

    Args:
        work: what each client does.
        clients: how many there are.
        rounds: how many rounds run in this process: one, blocks, and one.
        ray_rounds: how many on Flower's runtime, at least 3; 0: none.
        starts: how many new processes are started to measure the time to the first round.
        block: how many rounds are timed together before it is the peers' turn.
    """
    registry.load_plugin_file(PLUGINS[work])
    plan = plan_for(work, clients, rounds)
    peers: dict[str, Peer] = {BARE: BareDigits(plan) if work == "digits-cnn" else BareTrivial(plan)}
    if work == "digits-cnn" and importlib.util.find_spec("pfl") is not None:
        peers[PFL] = PflDigits(plan)
    watch, model = _run(work, plan, Stopwatch(peers, rounds, block))
    bare = watch.per_round(BARE)
    ours, spans = watch.per_round(RUN), [measure_first_round(work, clients) for _ in range(starts)]
    row = replace(
        _row(work, clients, EMBEDDED, ours, bare),
        first_round_s=_median([call for call, _ in spans]),
        process_s=_median([process for _, process in spans]),
        difference=_difference(model, peers[BARE].weights),
        ratio_to_pfl=_ratio(ours, watch.per_round(PFL)) if PFL in peers else None,
    )
    others = [_row(work, clients, BARE, bare, bare)]
    if PFL in peers:
        found = _row(work, clients, PFL, watch.per_round(PFL), bare)
        others.append(replace(found, difference=_difference(peers[PFL].weights, peers[BARE].weights)))
    elif work == "digits-cnn":
        others.append(Row(work, clients, PFL, note=MISSING))
    flower = _flower(work, clients, ray_rounds, bare)
    if flower.overhead_s is not None and row.overhead_s is not None and row.overhead_s > 0:
        row = replace(row, overhead_ratio=flower.overhead_s / row.overhead_s)
    return [replace(row, targets=_targets(row, flower, work)), *others, flower]


def _run(work: Work, plan: Plan, watch: Stopwatch) -> tuple[Stopwatch, dict[str, Tensor]]:
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(plan, out=Path(folder) / "run", plugins=[PLUGINS[work]], observer=watch)
        return watch, dict(result.load_model().state_dict())


def _flower(work: Work, clients: int, rounds: int, bare: Sequence[float]) -> Row:
    if importlib.util.find_spec("ray") is None:
        return Row(work, clients, FLOWER, note=MISSING)
    if not rounds:
        return Row(work, clients, FLOWER, note="not measured with --quick")
    watch, _ = _run(work, plan_for(work, clients, rounds, engine="ray"), Stopwatch({}, rounds, 1))
    times = watch.per_round(RUN)
    expected = statistics.median(bare)
    return Row(
        work,
        clients,
        FLOWER,
        seconds_per_round=statistics.median(times),
        timings=len(times),
        overhead_s=statistics.median(times) - expected,
        ratio_to_bare=statistics.median(times) / expected,
        first_round_s=watch.first,
    )


def _row(work: Work, clients: int, runtime: str, times: Sequence[float], bare: Sequence[float]) -> Row:
    return Row(
        work,
        clients,
        runtime,
        seconds_per_round=statistics.median(times),
        timings=len(times),
        overhead_s=statistics.median(a - b for a, b in zip(times, bare, strict=True)),
        ratio_to_bare=_ratio(times, bare),
    )


def _targets(row: Row, flower: Row, work: Work) -> tuple[Target, ...]:
    def target(text: str, measured: float | None, met: bool) -> Target:
        return Target(text, measured, None if measured is None else met)

    less, first, bare, pfl = row.overhead_ratio, row.first_round_s, row.ratio_to_bare, row.ratio_to_pfl
    nothing = flower.overhead_s is not None and less is None  # not slower than the bare loop, as far as can be measured
    common = (
        Target(FIFTY, None, True) if nothing else target(FIFTY, less, (less or 0) >= 50),
        target("first round within 3 s", first, (first or 0) <= 3),
    )
    if work == "trivial":
        return common
    return (
        *common,
        target("a round costs at most 1.2 times the bare loop", bare, (bare or 0) <= 1.2),
        target("a round costs no more than pfl's", pfl, (pfl or 0) <= 1),
    )


def _ratio(times: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _difference(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    return max(float((weights[name] - others[name]).abs().max()) for name in weights)
