"""What robust aggregation should reach, beside what was measured at one size: of several rules the worst one counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from astrofed.simulations.bench.aggregation_result import RuleRow, Size, Worst
from astrofed.simulations.bench.aggregation_work import CASES, MIXED, PRE

FLOWER_TIMES: dict[tuple[str, ...], tuple[str, Mapping[int, float]]] = {
    ("trimmed-mean", "median"): (">= 25 / 20 / 15", {10: 25, 30: 20, 100: 15}),
    ("krum", "multi-krum"): (">= 12 / 6 / 4", {10: 12, 30: 6, 100: 4}),
    ("bulyan",): (">= 20", {10: 20, 30: 20, 100: 20}),
}
READ_SHARES = {"mean": 0.70, "krum": 0.45}  # at n = 10
MEGABYTES = 64
BUSY = 0.1  # cores that other processes may use while two threads are compared with one
Values = Mapping[str, float | None]


def judge(size: Size) -> tuple[Worst, ...]:
    """Return the targets that apply to a size."""
    rows = {row.rule: row for row in size.rows}

    def values(names: Sequence[str], read: Callable[[RuleRow], float | None]) -> Values:
        return {name: read(rows[name]) if name in rows else None for name in names}

    targets = []
    for names, (text, least) in FLOWER_TIMES.items():
        if size.n in least:
            title = f"{', '.join(names)}: {text} times Flower's"
            targets.append(_at_least(title, values(names, lambda row: _against(row, "Flower")), least[size.n]))
    alone = values([f"{pre} alone" for pre in PRE], lambda row: row.gram_passes)
    targets.append(_at_most("a pre-aggregator: <= 1.3 Gram passes", alone, 1.3))
    before = values([case.name for case in MIXED], lambda row: row.gram_passes)
    targets.append(_at_most("before a trimmed mean: <= 1.3 Gram passes more", before, 1.3))
    compared = {name: _against(row, "ByzFL") for name, row in rows.items() if row.peer("ByzFL")}
    targets.append(_at_least("all rules: >= 3 times ByzFL's faster backend", compared, 3.0))
    free = {row.rule: row.two_threads for row in size.rows if not size.memory_bound(row) and row.two_threads}
    if free or not size.read_bandwidth_two:
        target = _at_least("two threads: >= 1.6 times one, unless memory is the bound", free, 1.6)
        busy = (size.others_two or 0.0) > BUSY  # two threads did not have two cores, so a miss says nothing
        targets.append(replace(target, met=None) if busy and target.met is False else target)
    if size.n == 10:
        for name, share in READ_SHARES.items():
            title = f"{name}: reads at >= {100 * share:.0f} % of the bandwidth"
            targets.append(_at_least(title, values((name,), size.read_share), share))
    every = [case.name for case in CASES]
    targets.append(_at_most("extra memory, MB: <= 64 beyond the result", values(every, _extra), MEGABYTES))
    targets.append(_at_most("deviation from float64: <= 1e-6", values(every, _deviation), 1e-6))
    return tuple(targets)


def _against(row: RuleRow, name: str) -> float | None:
    peer = row.peer(name)
    return peer.ratio if peer else None


def _extra(row: RuleRow) -> float | None:
    return None if row.extra is None else row.extra / 1e6


def _deviation(row: RuleRow) -> float | None:
    return max(row.deviations.values()) if row.deviations else None


def _at_least(title: str, values: Values, bound: float) -> Worst:
    known = {name: value for name, value in values.items() if value is not None}
    worst = min(known, key=lambda name: known[name], default=None)
    return _judged(title, values, known, worst, lambda value: value >= bound)


def _at_most(title: str, values: Values, bound: float) -> Worst:
    known = {name: value for name, value in values.items() if value is not None}
    worst = max(known, key=lambda name: known[name], default=None)
    return _judged(title, values, known, worst, lambda value: value <= bound)


def _judged(
    title: str, values: Values, known: Mapping[str, float], worst: str | None, reaches: Callable[[float], bool]
) -> Worst:
    """Return the target: missed if one misses it, not evaluable if one is unknown, else met."""
    if worst is None:
        return Worst(title, None, None)
    met = False if not reaches(known[worst]) else (True if len(known) == len(values) else None)
    return Worst(title, known[worst], met, worst if len(values) > 1 else "")
