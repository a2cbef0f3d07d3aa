"""What `astrofed bench aggregation` measured at each size, the targets it is judged by, and the tables of both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from astrofed.simulations.bench.result import MARK, Machine, Target, shown, verdict

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


@dataclass(frozen=True)
class PeerTime:
    """One peer's time for a rule; without `seconds` the note says why."""

    peer: str  # "Flower", "ByzFL (numpy)", …
    seconds: float | None = None  # median
    calls: int = 0  # how many rounds of the peers in turn it took part in
    ratio: float | None = None  # to ours, median over those rounds
    memory: float | None = None  # at its peak, beyond the replies, in multiples of their bytes
    note: str = ""


@dataclass(frozen=True)
class RuleRow:
    """One rule, with what comes before it, or a part of one, at one size; None where it was not measured."""

    rule: str  # "krum", "nnm + trimmed-mean"; "gram pass"; "nnm alone": its distances and weights, no result
    f: int
    seconds: float  # of the aggregation of arrays, one thread, median
    calls: int
    reads: float  # how often each value of the replies is read from memory
    through_messages: float | None = None  # seconds from messages to the new model as a record, as Flower's
    peers: tuple[PeerTime, ...] = ()
    two_threads: float | None = None  # how many times faster than one
    extra: int | None = None  # bytes at the peak, with one thread or two, beyond the replies and the result
    deviations: dict[str, float] = field(default_factory=dict)  # by the kind of replies
    gram_passes: float | None = None  # what it costs, or adds to the rule alone, in Gram passes

    def peer(self, name: str) -> PeerTime | None:
        """Return the fastest of the peers whose name begins like this."""
        found = [peer for peer in self.peers if peer.peer.startswith(name) and peer.seconds is not None]
        return min(found, key=lambda peer: peer.seconds or 0.0) if found else None


@dataclass(frozen=True)
class Worst(Target):
    """A target for several rules: what is measured is the farthest from it, of the rule that it names."""

    rule: str = ""


@dataclass(frozen=True)
class Size:
    """All rules at one number of replies n of d float32 values."""

    n: int
    d: int
    read_bandwidth: float | None = None  # bytes a second, one thread
    read_bandwidth_two: float | None = None  # two threads together; None on one core
    plain_sum: float | None = None  # seconds that a sum of the replies' values takes
    others: float | None = None  # cores that other processes used while one thread was measured
    others_two: float | None = None  # and while two were
    blas: str = ""
    rows: tuple[RuleRow, ...] = ()
    targets: tuple[Worst, ...] = ()
    note: str = ""  # why there is nothing, or something is missing

    def read_share(self, row: RuleRow) -> float | None:
        """Return a row's rate of reading as a share of the measured bandwidth."""
        if not self.read_bandwidth:
            return None
        return row.reads * 4 * self.n * self.d / row.seconds / self.read_bandwidth

    def memory_bound(self, row: RuleRow) -> bool | None:
        """Return whether two threads at 1.6 times the speed would read faster than two can at all."""
        if not self.read_bandwidth_two:
            return None
        return 1.6 * row.reads * 4 * self.n * self.d / row.seconds > self.read_bandwidth_two


@dataclass(frozen=True)
class AggregationResult:
    """The bench's sizes, and what they were measured with."""

    machine: Machine
    sizes: tuple[Size, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether all targets are met; None where none is missed but some could not be evaluated."""
        return verdict(target for size in self.sizes for target in size.targets)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data for JSON."""
        return {**asdict(self), "met": self.met}

    def table(self) -> "Group":
        """Return the result for people: a table of each size, and one of the targets."""
        from rich.console import Group

        return Group(*(_table(size) for size in self.sizes), _targets(self.sizes))


def _table(size: Size) -> "Table":
    from rich.table import Table

    facts = [f"{size.read_bandwidth / 1e9:.1f} GB/s read by one thread"] if size.read_bandwidth else []
    if size.plain_sum and size.read_bandwidth:
        share = 4 * size.n * size.d / size.plain_sum / size.read_bandwidth
        facts.append(
            f"a plain sum of the replies, in the pages in which they lie: {_milliseconds(size.plain_sum)} ms, "
            f"{100 * share:.0f} % of that"
        )
    if size.read_bandwidth_two:
        facts.append(
            f"{size.read_bandwidth_two / 1e9:.1f} GB/s by two; *: two threads at 1.6 times the speed need more"
        )
    if size.others is not None:
        facts.append(f"other processes used {size.others:.2f} cores, and {size.others_two or 0:.2f} beside two threads")
    facts += [f"BLAS: {size.blas}", size.note]
    facts += [f"{row.rule}: {peer.peer}: {peer.note}" for row in size.rows for peer in row.peers if peer.note]
    table = Table(title=_label(size), caption="\n".join(filter(None, facts)), caption_justify="left")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "rule" else "right")
    for row in size.rows:
        table.add_row(*(cell(size, row) for cell in _COLUMNS.values()))
    return table


def _targets(sizes: Sequence[Size]) -> "Table":
    from rich.table import Table

    table = Table(title="Targets")
    for name in ("", *(_label(size) for size in sizes)):
        table.add_column(name)
    for text in dict.fromkeys(target.target for size in sizes for target in size.targets):
        cells = []
        for size in sizes:
            found = next((target for target in size.targets if target.target == text), None)
            cells.append(f"{MARK[found.met]} {shown(found.measured)} {found.rule}".strip() if found else "")
        table.add_row(text, *cells)
    return table


def _label(size: Size) -> str:
    return f"n = {size.n}, d = {size.d:.0e}".replace("e+0", "e")


def _peer(name: str) -> Callable[[Size, RuleRow], str]:
    def cell(size: Size, row: RuleRow) -> str:
        found = row.peer(name)
        return f"{1e3 * (found.seconds or 0.0):.3g} ({shown(found.ratio)}x)" if found else ""

    return cell


def _milliseconds(value: float | None) -> str:
    return shown(None if value is None else 1e3 * value)


_COLUMNS: Mapping[str, Callable[[Size, RuleRow], str]] = {
    "rule": lambda _, row: row.rule,
    "f": lambda _, row: str(row.f),
    "ms": lambda _, row: _milliseconds(row.seconds),
    "read %": lambda size, row: shown(100 * (size.read_share(row) or 0.0)) if size.read_bandwidth else "",
    "from messages": lambda _, row: _milliseconds(row.through_messages),
    "Flower": _peer("Flower"),
    "ByzFL": _peer("ByzFL"),
    "2 threads": lambda size, row: shown(row.two_threads) + ("*" if size.memory_bound(row) else ""),
    "extra MB": lambda _, row: shown(None if row.extra is None else row.extra / 1e6),
    "deviation": lambda _, row: f"{max(row.deviations.values()):.1e}" if row.deviations else "",
    "Gram passes": lambda _, row: shown(row.gram_passes),
}
