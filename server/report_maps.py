"""Maps of a report: fields drawn by matplotlib's Agg canvas as bare images, framed with axes and colour bar in SVG.

Colour maps are readable with colour-blind eyes: perceptually even ones for fields, diverging ones centred on zero for
fields with both signs and for errors. Truth and prediction share one scale.
"""

from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from xml.etree.ElementTree import Element

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray

from astrofed.server.report_numbers import figure
from astrofed.server.report_plots import Scale, add, drawing, labelled, markup
from astrofed.server.showcase import Map

Field = NDArray[np.float64]
_SEQUENTIAL = {"K": "inferno", "kg/kg": "viridis"}
_STEPS = 49  # of colour
_PIXELS = 640  # width of a map's image; half as high
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 360.0, 34.0, 354.0, 6.0, 166.0


@dataclass(frozen=True)
class Panels:
    """One map's three pictures and the numbers that go with them."""

    title: str
    place: str  # participant, variable, level, unit
    note: str
    pictures: tuple[tuple[str, Markup], ...]  # caption and drawing


@dataclass(frozen=True)
class Colours:
    """A colour map and the values at its ends."""

    name: str
    low: float
    high: float


def panels(item: Map, key: str) -> Panels:
    """Draw truth, prediction and error of one map; `key` sets its drawings' ids apart from others."""
    shared, errors = _field_colours(item), _symmetric("RdBu_r", item.error)
    pictures = (
        ("truth", _picture(item, item.truth, shared, f"{key}t", "truth")),
        ("prediction", _picture(item, item.prediction, shared, f"{key}p", "prediction")),
        ("error: prediction less truth", _picture(item, item.error, errors, f"{key}e", "error")),
    )
    level = "" if item.level is None else f", σ = {item.level:.3g}"
    return Panels(
        item.title, f"{item.participant}: {item.variable}{level}, {item.units}", _note(item, shared), pictures
    )


def _note(item: Map, shared: Colours) -> str:
    weight = np.cos(np.deg2rad(item.lat))[:, None] * np.ones_like(item.error)
    rms = float(np.sqrt(np.average(item.error**2, weights=weight)))
    largest = float(np.abs(item.error).max())
    note = f"Area-weighted RMS error {figure(rms)} {item.units}, largest {figure(largest)} {item.units}."
    if item.prediction.min() < shared.low or item.prediction.max() > shared.high:
        ends = f"{figure(float(item.prediction.min()))} to {figure(float(item.prediction.max()))}"
        note += f" The prediction leaves the colour scale: it spans {ends} {item.units}."
    return note


def _field_colours(item: Map) -> Colours:
    """Return the scale of truth and prediction: that of both, but not much wider than the truth's."""
    low, high = float(item.truth.min()), float(item.truth.max())
    room = 0.5 * (high - low) or abs(high) or 1.0
    low = max(low - room, min(low, float(item.prediction.min())))
    high = min(high + room, max(high, float(item.prediction.max())))
    if item.units not in _SEQUENTIAL and low < 0 < high:
        return _symmetric("PuOr_r", np.array([low, high]))
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):  # the same everywhere
        low, high = low - room, high + room
    return Colours(_SEQUENTIAL.get(item.units, "viridis"), low, high)


def _symmetric(name: str, values: Field) -> Colours:
    limit = float(np.abs(values).max()) or 1.0
    return Colours(name, -limit, limit)


def _picture(item: Map, values: Field, colours: Colours, key: str, what: str) -> Markup:
    svg = drawing(_WIDTH, 214.0, f"Map of {what}: {item.title}, {item.variable} in {item.units}")
    west = float(item.lon[0] - 0.5 * (item.lon[1] - item.lon[0]))
    lon, lat = Scale(west, west + 360.0, _LEFT, _RIGHT), Scale(-90.0, 90.0, _BOTTOM, _TOP)
    frame = {"x": _LEFT, "y": _TOP, "width": _RIGHT - _LEFT, "height": _BOTTOM - _TOP}
    image = _image(item.lat, item.lon, values, colours, west)
    add(svg, "image", {**frame, "preserveAspectRatio": "none", "href": image})
    add(svg, "rect", {**frame, "class": "frame"})
    for degrees in (-60, -30, 0, 30, 60):
        text = f"{abs(degrees)}°{'N' if degrees > 0 else 'S' if degrees else ''}"
        add(svg, "text", {"class": "tick", "x": _LEFT - 5, "y": lat(degrees) + 4, "text-anchor": "end"}, text)
        add(svg, "line", {"class": "frame", "x1": _LEFT, "x2": _LEFT + 4, "y1": lat(degrees), "y2": lat(degrees)})
    for degrees in range(0, 361, 60):
        if west <= degrees < west + 360:
            at = lon(degrees)
            add(
                svg,
                "text",
                {"class": "tick", "x": max(at, _LEFT + 8), "y": _BOTTOM + 14, "text-anchor": "middle"},
                f"{degrees}°",
            )
            add(svg, "line", {"class": "frame", "x1": at, "x2": at, "y1": _BOTTOM - 4, "y2": _BOTTOM})
    _colour_bar(svg, colours, key)
    return markup(svg)


def _colour_bar(svg: Element, colours: Colours, key: str) -> None:
    gradient = add(add(svg, "defs", {}), "linearGradient", {"id": key})
    for share in np.linspace(0, 1, 17):
        add(gradient, "stop", {"offset": f"{share:.4f}", "stop-color": to_hex(colormaps[colours.name](float(share)))})
    add(svg, "rect", {"x": _LEFT, "y": 186.0, "width": _RIGHT - _LEFT, "height": 9.0, "fill": f"url(#{key})"})
    scale = Scale(colours.low, colours.high, _LEFT, _RIGHT)
    for value, text in labelled(scale.ticks(5)):
        add(svg, "line", {"class": "frame", "x1": scale(value), "x2": scale(value), "y1": 195.0, "y2": 198.0})
        at = min(max(scale(value), _LEFT + 8), _RIGHT - 8)
        add(svg, "text", {"class": "tick", "x": at, "y": 210.0, "text-anchor": "middle"}, text)


def _image(lat: Field, lon: Field, values: Field, colours: Colours, west: float) -> str:
    """Return the bare field [lat, lon] as a PNG data URI, 360 degrees wide from `west`, pole to pole."""
    canvas = FigureCanvasAgg(Figure(figsize=(_PIXELS / 100, _PIXELS / 200), dpi=100))
    axes = canvas.figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(west, west + 360)
    axes.set_ylim(-90, 90)
    levels = np.linspace(colours.low, colours.high, _STEPS)
    axes.contourf(*_closed(lat, lon, values), levels, cmap=colours.name, extend="both", antialiased=False)
    buffer = BytesIO()
    canvas.figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode("ascii")


def _closed(lat: Field, lon: Field, values: Field) -> tuple[Field, Field, Field]:
    """Return longitudes, latitudes and a field [lat, lon] that goes once around and reaches both poles."""
    around = np.concatenate(([lon[-1] - 360], lon, [lon[0] + 360]))
    poles = np.concatenate(([np.copysign(90, lat[0])], lat, [np.copysign(90, lat[-1])]))
    return around, poles, np.pad(np.pad(values, ((0, 0), (1, 1)), mode="wrap"), ((1, 1), (0, 0)), mode="edge")
