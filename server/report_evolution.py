"""A report's section on the evolution behind a run: best loss and values over generations, and who moved where."""

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from astrofed.server.evolution.lives import Life, best
from astrofed.server.evolution.run import EvolutionRecord, read_evolution
from astrofed.server.report_plots import Scale, add, drawing, labelled, markup

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT = 640.0, 320.0, 60.0, 14.0, 150.0


@dataclass(frozen=True)
class Evolution:
    """What the page shows of an evolution."""

    record: EvolutionRecord
    keys: tuple[str, ...]  # that evolved
    best: tuple[tuple[Life, ...], ...]  # [island, generation]: the best member
    plot: Markup

    @property
    def generations(self) -> int:
        """How many there were."""
        return len(self.best[0])

    @property
    def migrations(self) -> list[Life]:
        """The lives that began on another island."""
        return [life for life in self.record.lives if life.origin == "migrated"]

    def island(self, number: int) -> str:
        """Return an island's name: that of its site, or "all sites"."""
        sites = self.record.islands[number - 1]
        return sites[0] if len(sites) == 1 else "all sites"


def evolution_section(run: Path) -> Evolution | None:
    """Return the section of a run that an evolution preceded; None of any other (RecordBroken: it can't be read)."""
    record = read_evolution(run)
    if record is None:
        return None
    generations = max(life.place.generation for life in record.lives)
    leaders = tuple(
        tuple(
            best([life for life in record.lives if (life.place.island, life.place.generation) == (island, generation)])
            for generation in range(1, generations + 1)
        )
        for island in range(1, len(record.islands) + 1)
    )
    found = Evolution(record, tuple(record.lives[0].values), leaders, Markup(""))
    return Evolution(record, found.keys, leaders, _plot(found))


def _plot(found: Evolution) -> Markup:
    """Draw the best member's loss by generation, a curve an island."""
    bottom, end = _HEIGHT - 44.0, _WIDTH - _RIGHT
    svg = drawing(_WIDTH, _HEIGHT, "Loss of each island's best member by generation, on the island's held-out data")
    losses = [[life.loss or 0.0 for life in lives] for lives in found.best]
    low, high = min(map(min, losses)), max(map(max, losses))
    margin = 0.06 * (high - low) or 0.1
    x = Scale(1.0, max(float(found.generations), 2.0), _LEFT, end)
    y = Scale(low - margin, high + margin, bottom, _TOP)
    for value, text in labelled(y.ticks(6)):
        add(svg, "line", {"class": "grid", "x1": _LEFT, "x2": end, "y1": y(value), "y2": y(value)})
        add(svg, "text", {"class": "tick", "x": _LEFT - 8, "y": y(value) + 4, "text-anchor": "end"}, text)
    for value, text in labelled(x.ticks(10, whole=True)):
        add(svg, "text", {"class": "tick", "x": x(value), "y": bottom + 20, "text-anchor": "middle"}, text)
    add(svg, "text", {"class": "tick", "x": (_LEFT + end) / 2, "y": _HEIGHT - 4, "text-anchor": "middle"}, "generation")
    places: list[float] = []
    for island, values in sorted(enumerate(losses, 1), key=lambda item: y(item[1][-1])):
        kind = "model" if island == found.record.winner else "initial"
        points = [(x(float(generation)), y(value)) for generation, value in enumerate(values, 1)]
        add(svg, "polyline", {"class": f"curve {kind}", "points": " ".join(f"{a:.1f},{b:.1f}" for a, b in points)})
        for a, b in points:
            add(svg, "circle", {"class": f"point {kind}", "cx": a, "cy": b, "r": 3.0})
        places.append(max(points[-1][1], places[-1] + 16.0) if places else points[-1][1])
        style = "label strong model" if kind == "model" else "label"
        add(svg, "text", {"class": style, "x": end + 12, "y": places[-1] + 4}, found.island(island))
    return markup(svg)
