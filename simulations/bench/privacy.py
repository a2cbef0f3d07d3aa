"""`astrofed bench privacy`: a step of our DP training beside plain SGD and Opacus, and our epsilon beside three others.

All ways to train a network take turns in one process, on one thread; a ratio is the median over the turns.
"""

import importlib.util
import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from opacus.accountants import PRVAccountant, RDPAccountant

from astrofed.client.privacy.gradients import Form, OneByOne
from astrofed.client.privacy.units import Rows
from astrofed.shared.privacy import accounting
from astrofed.shared.privacy.accounting import ORDERS, epsilon
from astrofed.shared.privacy.events import Event
from astrofed.simulations.bench.privacy_memory import peaks, peaks_apart
from astrofed.simulations.bench.privacy_peers import OURS, PLAIN, Steps, difference, fresh, ours, plain, private_ways
from astrofed.simulations.bench.privacy_result import EpsilonRow, PrivacyResult, StepRow
from astrofed.simulations.bench.privacy_work import Work, works
from astrofed.simulations.bench.result import Target, this_machine
from astrofed.simulations.bench.turns import Call, alternate, ratio

DELTA = 1e-5
TURN_S = 0.15  # about this long are a turn's steps of plain SGD
PATIENCE_S = 3.0  # a way that has taken this long takes no more turns
QUIETEST = 1e-9  # a noise multiplier that shows nowhere in float32
MEMORY = 1.5
Memory = Callable[[Mapping[str, Steps]], Mapping[str, int | None]]
HISTORIES: Mapping[str, tuple[Event, ...]] = {
    "noise 1, rate 0.1, 300 steps": (Event(1.0, 0.1, 300),),
    "noise 0.8, rate 0.02, 400 steps": (Event(0.8, 0.02, 400),),
    "noise 4, all units, 30 steps": (Event(4.0, 1.0, 30),),
    "50 rounds of 20 steps, noise 1, rate 64 / 1437": (Event(1.0, 64 / 1437, 1000),),
    "twelve runs of 20 steps, noise 1.1 to 2.2, rate 0.05 to 0.16": tuple(
        Event(1.1 + 0.1 * number, 0.05 + 0.01 * number, 20) for number in range(12)
    ),
}


def run_privacy_bench(quick: bool) -> PrivacyResult:
    """Measure; `quick` takes fewer turns."""
    machine, turns = this_machine(), 3 if quick else 9
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = [row for work in works() for row in step_rows(work, turns, memory=partial(peaks_apart, work.name))]
    finally:
        torch.set_num_threads(threads)
    histories = list(HISTORIES.items())[: 3 if quick else None]
    settings = {"quick": quick, "threads": 1, "turns": turns, "delta": DELTA, "opacus": version("opacus")}
    return PrivacyResult(machine, tuple(steps), tuple(epsilon_row(*history) for history in histories), settings)


def step_rows(work: Work, turns: int, turn_s: float = TURN_S, memory: Memory = peaks) -> list[StepRow]:
    """Measure one network in all ways; a way that can't train it has a row that says why.

    `memory` returns the bytes that a step takes in each of some ways.
    """
    reference = fresh(work)
    ours(work, reference, QUIETEST, _Looped(work))(1)
    ways = private_ways(work)
    found: dict[str, tuple[Steps, float | None]] = {PLAIN: (plain(work), None)}
    off: float | None
    notes: dict[str, str] = {}
    for name, way in ways.items():
        noise = QUIETEST if name == OURS else 0.0
        try:
            off = difference(work, lambda model, way=way, noise=noise: way(model, noise=noise), reference)  # type: ignore[misc]
            found[name] = way(fresh(work)), off
        except Exception as error:  # noqa: BLE001 - whatever a peer raises on a network is what there is to say of it
            notes[name] = f"can't: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
    taken = memory({name: steps for name, (steps, _) in found.items()})
    once = Call(lambda _: found[PLAIN][0](1))
    count = max(1, round(turn_s / statistics.median(alternate({PLAIN: once}, 3, 9.0)[PLAIN])))
    calls = {name: Call(lambda _, take=steps: take(count)) for name, (steps, _) in found.items()}  # type: ignore[misc]
    times = alternate(calls, turns, PATIENCE_S)
    model = fresh(work)
    common: dict[str, Any] = {
        "model": work.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "units": len(work.batch[0]),
    }
    rows = [StepRow(**common, runtime=name, note=note) for name, note in notes.items()]
    for name, (_, off) in found.items():
        peak, least = taken.get(name), taken.get(PLAIN)
        row = StepRow(
            **common,
            runtime=name,
            seconds=statistics.median(times[name]) / count,
            ratio=ratio(times[name], times[PLAIN]),
            peak=peak,
            memory=peak / least if peak and least else None,
            difference=off,
        )
        wrong = off is not None and not row.right
        rows.append(replace(row, note="its units' gradients are wrong" if wrong else ""))
    order = (PLAIN, *ways)
    rows.sort(key=lambda row: order.index(row.runtime))
    return [replace(row, targets=_targets(work, row, rows, times)) if row.runtime == OURS else row for row in rows]


class _Looped(Rows):
    """Units whose gradients are taken one unit after the other."""

    def __init__(self, work: Work) -> None:
        super().__init__(work.batch, work.loss)
        self._form: Form | None = OneByOne()


def _targets(work: Work, row: StepRow, rows: list[StepRow], times: Mapping[str, list[float]]) -> tuple[Target, ...]:
    peers = {other.runtime: ratio(times[OURS], times[other.runtime]) for other in rows if other.note == ""}
    peers = {name: value for name, value in peers.items() if name not in (OURS, PLAIN)}
    slowest = max(peers.values(), default=None)
    best = max(peers, key=lambda name: peers[name], default="Opacus")
    targets = [
        Target("the step is that of a loop over units, to 1e-3", row.difference, row.right),
        Target(f"no slower than {best}, its fastest right mode", slowest, None if slowest is None else slowest <= 1),
    ]
    if work.at_most is not None and row.ratio is not None:
        targets.append(Target(f"at most {work.at_most:g} times plain SGD", row.ratio, row.ratio <= work.at_most))
    fits = None if row.memory is None else row.memory <= MEMORY
    return (*targets, Target(f"at most {MEMORY:g} times plain SGD's memory", row.memory, fits))


def epsilon_row(history: str, events: tuple[Event, ...]) -> EpsilonRow:
    """Return what each accountant says of a history."""
    steps = accounting._merged(events)
    renyi, numerical = accounting._renyi(steps, DELTA), accounting._numerical(steps, DELTA)
    own, theirs = (
        epsilon(events, DELTA),
        [_opacus(accountant, events) for accountant in (RDPAccountant(), PRVAccountant())],
    )
    pld = _pld(events)
    off = max(abs(renyi / theirs[0] - 1), abs(numerical / theirs[1] - 1))
    far = None if pld is None else abs(own / pld - 1)
    targets = (
        Target("Opacus' RDP and PRV to 1e-6", off, off <= 1e-6),
        Target("dp-accounting's PLD within 1 %", far, None if far is None else far <= 0.01),
    )
    return EpsilonRow(history, renyi, theirs[0], numerical, theirs[1], own, pld, targets)


def _opacus(accountant: PRVAccountant | RDPAccountant, events: tuple[Event, ...]) -> float:
    accountant.history = [(event.noise_multiplier, event.sample_rate, event.steps) for event in events]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if isinstance(accountant, RDPAccountant):
            return float(accountant.get_epsilon(DELTA, alphas=ORDERS.tolist()))
        return float(accountant.get_epsilon(DELTA))


def _pld(events: tuple[Event, ...]) -> float | None:
    if importlib.util.find_spec("dp_accounting") is None:
        return None
    import dp_accounting

    accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-3)
    for event in events:
        step = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(event.sample_rate, step), event.steps)
    return float(accountant.get_epsilon(DELTA))
