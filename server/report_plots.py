"""Line plots of a report as inline SVG: text stays text, colours follow the page's theme through its style sheet.

Built as element trees, so that every label is escaped. Ticks are matplotlib's; nothing here touches its global state.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup
from matplotlib.ticker import LogLocator, MaxNLocator

from astrofed.server.report_numbers import figure
from astrofed.server.report_scores import Scores, Variable

Attributes = Mapping[str, str | float]
_LOGARITHMIC_FROM = 30.0  # ratio of the largest to the smallest value
_LARGEST = 1e30
_MOST_POINTS = 60  # marked singly on a curve
_LABEL_GAP = 17.0  # px between the middles of two labels


@dataclass(frozen=True)
class Scale:
    """Maps data to pixels along one axis, linearly or by logarithms."""

    low: float
    high: float
    start: float  # px of `low`
    end: float  # px of `high`
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return where a value lies, px."""
        by: Callable[[float], float] = math.log10 if self.logarithmic else float
        share = (by(value) - by(self.low)) / (by(self.high) - by(self.low))
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int, *, whole: bool = False) -> list[float]:
        """Return round values inside the axis."""
        if self.logarithmic:
            values = LogLocator(numticks=most).tick_values(self.low, self.high)
        else:
            values = MaxNLocator(most, integer=whole, min_n_ticks=1 if whole else 2).tick_values(self.low, self.high)
        margin = 1e-9 * (self.high - self.low)
        return [float(value) for value in values if self.low - margin <= value <= self.high + margin]


def drawing(width: float, height: float, label: str) -> Element:
    """Return an empty drawing that screen readers announce by `label`."""
    size = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": label}
    return Element("svg", size)


def add(parent: Element, tag: str, attributes: Attributes, text: str | None = None) -> Element:
    """Append an element; numbers are rounded to a tenth of a pixel."""
    given = {key: f"{value:.1f}" if isinstance(value, float) else str(value) for key, value in attributes.items()}
    element = SubElement(parent, tag, given)
    element.text = text
    return element


def markup(svg: Element) -> Markup:
    """Return a drawing as markup, ready for the page."""
    return Markup(tostring(svg, encoding="unicode"))


def loss_plot(scores: Scores, width: float, *, kind: str, what: str) -> Markup:
    """Draw the loss by round with the baselines as labelled lines; `kind` is the curve's style class."""
    wide = width > 500
    height, left, right = (340.0, 50.0, 150.0) if wide else (300.0, 40.0, 124.0)
    top, bottom, end = 14.0, height - 40.0, width - right
    svg = drawing(width, height, f"Error by round on {what}, with the baselines' errors as horizontal lines")
    losses = {number: _drawable(value) for number, value in scores.losses.items()}
    baselines = {name: _drawable(value) for name, value in scores.baselines.items()}
    rounds = list(losses)
    x = Scale(rounds[0], max(rounds[-1], rounds[0] + 1), left, end)
    y = _loss_scale(list(losses.values()), sorted(baselines.values()), bottom, top)
    for value, text in labelled(y.ticks(6)):
        add(svg, "line", {"class": "grid", "x1": left, "x2": end, "y1": y(value), "y2": y(value)})
        add(svg, "text", {"class": "tick", "x": left - 8, "y": y(value) + 4, "text-anchor": "end"}, text)
    for value, text in labelled(x.ticks(12 if wide else 6, whole=True)):
        add(svg, "text", {"class": "tick", "x": x(value), "y": height - 20, "text-anchor": "middle"}, text)
    add(svg, "text", {"class": "tick", "x": (left + end) / 2, "y": height - 3, "text-anchor": "middle"}, "round")
    labels = [(y(losses[rounds[-1]]), f"model {figure(scores.last[1])}", f"label strong {kind}")]
    for index, (name, value) in enumerate(baselines.items()):
        text = f"{name} {figure(scores.baselines[name])}"
        if value > y.high:
            labels.append((top, f"{text} ↑", "label"))
            continue
        style = f"baseline dash{index % 3}"
        add(svg, "line", {"class": style, "x1": left, "x2": end, "y1": y(value), "y2": y(value)})
        labels.append((y(value), text, "label"))
    points = [(x(number), y(value)) for number, value in losses.items()]
    _add_curve(svg, points, kind, marked=len(points) <= _MOST_POINTS)
    _add_labels(svg, labels, end, bottom)
    return markup(svg)


def profile_plot(variable: Variable, number: int) -> Markup:
    """Draw one variable's error by model level, top of the atmosphere above, for the initial and the last model."""
    width, height, left, top, bottom = 300.0, 230.0, 30.0, 10.0, 184.0
    svg = drawing(width, height, f"Error of {variable.name} by model level after round {number}")
    count = max(len(variable.levels), len(variable.initial_levels))
    final = [_drawable(value) for value in variable.levels]
    initial = [_drawable(value) for value in variable.initial_levels]
    largest = max(*final, *initial) or 1.0
    x, y = Scale(0.0, 1.05 * largest, left, width - 8), Scale(0.0, count - 1.0, top, bottom)
    for value, text in labelled(x.ticks(4)):
        add(svg, "line", {"class": "grid", "x1": x(value), "x2": x(value), "y1": top - 6, "y2": bottom + 6})
        add(svg, "text", {"class": "tick", "x": x(value), "y": bottom + 22, "text-anchor": "middle"}, text)
    for value, text in labelled(y.ticks(6, whole=True)):
        add(svg, "text", {"class": "tick", "x": left - 8, "y": y(value) + 4, "text-anchor": "end"}, text)
    caption = f"{variable.name} ({variable.unit})" if variable.unit else variable.name
    add(svg, "text", {"class": "label", "x": (left + width - 8) / 2, "y": height - 4, "text-anchor": "middle"}, caption)
    _add_curve(svg, [(x(value), y(level)) for level, value in enumerate(initial)], "initial", marked=False)
    _add_curve(svg, [(x(value), y(level)) for level, value in enumerate(final)], "model", marked=True)
    return markup(svg)


def labelled(ticks: Sequence[float]) -> list[tuple[float, str]]:
    """Return an axis's ticks with their labels, all with as many decimals as the finest needs."""
    plain = [f"{value:g}" for value in ticks]
    if any("e" in text for text in plain):
        return [(value, figure(value, 2)) for value in ticks]
    places = max((len(text.partition(".")[2]) for text in plain), default=0)
    return [(value, f"{value:.{places}f}".replace("-", "\N{MINUS SIGN}")) for value in ticks]


def _drawable(value: float) -> float:
    """Return a value that arithmetic on axes can't push out of range: sites may report any number."""
    return 0.0 if abs(value) < 1 / _LARGEST else min(max(value, -_LARGEST), _LARGEST)


def _loss_scale(losses: Sequence[float], baselines: Sequence[float], bottom: float, top: float) -> Scale:
    """Return an axis for all losses and the lowest baseline, and the others if they don't squeeze the curve."""
    shown = [*losses, *baselines[:1]]
    low, high = min(shown), max(shown)
    if low > 0 and high / low > _LOGARITHMIC_FROM:
        return Scale(low / 1.3, 1.3 * max(high, *baselines, high), bottom, top, logarithmic=True)
    high = max(value for value in (high, *baselines) if value <= high + 0.75 * (high - low))
    margin = max(0.06 * (high - low), 0.02 * abs(high)) or 1.0
    return Scale(low - margin, high + margin, bottom, top)


def _add_curve(svg: Element, points: Sequence[tuple[float, float]], kind: str, *, marked: bool) -> None:
    add(svg, "polyline", {"class": f"curve {kind}", "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points)})
    for x, y in points if marked else ():
        add(svg, "circle", {"class": f"point {kind}", "cx": x, "cy": y, "r": 3.0})


def _add_labels(svg: Element, labels: Sequence[tuple[float, str, str]], x: float, bottom: float) -> None:
    """Write labels beside the plot at their heights, pushed apart where they would overlap, tied by thin leaders."""
    ordered = sorted(labels)
    places: list[float] = []
    for height, _, _ in ordered:
        places.append(max(height, places[-1] + _LABEL_GAP) if places else height)
    limit = bottom
    for index in reversed(range(len(places))):
        places[index] = min(places[index], limit)
        limit = places[index] - _LABEL_GAP
    for (height, text, style), place in zip(ordered, places, strict=True):
        add(svg, "polyline", {"class": "leader", "points": f"{x + 2:.1f},{height:.1f} {x + 12:.1f},{place:.1f}"})
        add(svg, "text", {"class": style, "x": x + 16, "y": place + 4}, text)
