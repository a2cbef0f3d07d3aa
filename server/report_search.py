"""A report's section on the architecture search behind a run: its Pareto front, drawn and as a table."""

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from astrofed.server.report_plots import Scale, add, drawing, labelled, markup
from astrofed.server.search.run import SearchRecord, Share, read_search
from astrofed.server.search.trials import Trial
from astrofed.shared.plan import Value

_WIDTH, _HEIGHT, _LEFT, _TOP = 640.0, 320.0, 60.0, 14.0


@dataclass(frozen=True)
class Search:
    """What the page shows of a search."""

    record: SearchRecord
    keys: tuple[str, ...]  # of the space
    front: tuple[Trial, ...]  # the lowest loss first; empty for a differentiable search
    plot: Markup | None

    @property
    def shares(self) -> list[Share]:
        """The candidates of a differentiable search, the largest share first."""
        return sorted(self.record.shares, key=lambda share: -share.share)

    def value(self, trial: Trial | Share, key: str) -> Value:
        """Return what a candidate has for a key of the space."""
        return trial.choices[key]


def search_section(run: Path) -> Search | None:
    """Return the section of a run that a search preceded; None of any other (RecordBroken: it can't be read)."""
    record = read_search(run)
    if record is None:
        return None
    by_number = {trial.number: trial for trial in record.trials}
    front = tuple(by_number[number] for number in record.front)
    first = front[0] if front else record.shares[0]
    return Search(record, tuple(first.choices), front, _plot(record, front) if front else None)


def _plot(record: SearchRecord, front: tuple[Trial, ...]) -> Markup:
    """Draw loss over parameters, a point a candidate; those of the front are filled and joined."""
    bottom, end = _HEIGHT - 44.0, _WIDTH - 16.0
    svg = drawing(_WIDTH, _HEIGHT, "Loss of each candidate over its number of parameters, the Pareto front joined")
    sizes, losses = [t.parameters for t in record.trials], [t.loss for t in record.trials]
    margin = 0.06 * (max(losses) - min(losses)) or 0.1
    x = Scale(min(sizes) / 1.2, max(sizes) * 1.2, _LEFT, end, logarithmic=True)
    y = Scale(min(losses) - margin, max(losses) + margin, bottom, _TOP)
    for value, text in labelled(y.ticks(6)):
        add(svg, "line", {"class": "grid", "x1": _LEFT, "x2": end, "y1": y(value), "y2": y(value)})
        add(svg, "text", {"class": "tick", "x": _LEFT - 8, "y": y(value) + 4, "text-anchor": "end"}, text)
    for size in sorted({min(sizes), max(sizes)}):
        add(svg, "text", {"class": "tick", "x": x(size), "y": bottom + 20, "text-anchor": "middle"}, f"{size:,}")
    middle = (_LEFT + end) / 2
    add(svg, "text", {"class": "tick", "x": middle, "y": _HEIGHT - 4, "text-anchor": "middle"}, "parameters")
    joined = sorted(front, key=lambda trial: trial.parameters)
    points = " ".join(f"{x(t.parameters):.1f},{y(t.loss):.1f}" for t in joined)
    add(svg, "polyline", {"class": "curve model", "points": points})
    for trial in record.trials:
        kind = "model" if trial.number in record.front else "initial"
        add(svg, "circle", {"class": f"point {kind}", "cx": x(trial.parameters), "cy": y(trial.loss), "r": 3.5})
    return markup(svg)
