"""Plots and maps of reports: whatever sites report, the drawing is finite, escaped and true to scale."""

import math
import re
from xml.etree.ElementTree import Element, fromstring

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astrofed.server.report_maps import panels
from astrofed.server.report_plots import Scale, loss_plot, profile_plot
from astrofed.server.report_scores import Scores, Variable
from astrofed.server.showcase import Map

ANY = st.floats(allow_nan=False, allow_infinity=False)


def coordinates(svg: Element) -> list[float]:
    """Every number that places something."""
    found = []
    for element in svg.iter():
        for key in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "points", "width", "height"):
            found += [float(text) for text in re.split("[ ,]", element.get(key, "")) if text]
    return found


def texts(svg: Element) -> list[str]:
    return [element.text or "" for element in svg.iter("text")]


@settings(deadline=None, max_examples=60)
@given(st.lists(ANY, min_size=1, max_size=5), st.lists(ANY, max_size=4), st.sampled_from([380.0, 960.0]))
def test_any_losses_are_drawn_inside_the_picture(losses: list[float], baselines: list[float], width: float) -> None:
    scores = Scores(dict(enumerate(losses)), {f"b{i}": value for i, value in enumerate(baselines)}, ())
    svg = fromstring(loss_plot(scores, width, kind="model", what="data"))
    found = coordinates(svg)
    assert all(math.isfinite(value) and -60 <= value <= width for value in found)
    assert sum(text.startswith("b") for text in texts(svg)) == len(baselines)


@settings(deadline=None, max_examples=40)
@given(st.lists(ANY, min_size=2, max_size=5), st.lists(ANY, max_size=5))
def test_any_profile_is_finite(levels: list[float], initial: list[float]) -> None:
    svg = fromstring(profile_plot(Variable("ta", "K", 1.0, {}, tuple(levels), tuple(initial)), 3))
    assert all(math.isfinite(value) for value in coordinates(svg))


def test_a_loss_below_a_baseline_is_drawn_below_it() -> None:
    svg = fromstring(loss_plot(Scores({0: 1.0, 1: 0.7}, {"persistence": 0.9}, ()), 960, kind="model", what="data"))
    line = next(element for element in svg.iter("line") if "baseline" in element.get("class", ""))
    first, last = (float(p.split(",")[1]) for p in next(svg.iter("polyline")).get("points", "").split())
    assert first < float(line.get("y1", "nan")) < last


def test_a_diverging_run_gets_a_logarithmic_axis() -> None:
    svg = fromstring(loss_plot(Scores({0: 1.0, 1: 1e3, 2: 1e6}, {"b": 0.9}, ()), 960, kind="model", what="data"))
    heights = [float(point.split(",")[1]) for point in next(svg.iter("polyline")).get("points", "").split()]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)


def test_a_baseline_far_above_does_not_squeeze_the_curve() -> None:
    svg = fromstring(loss_plot(Scores({0: 1.0, 1: 0.7}, {"far": 9.0, "near": 0.9}, ()), 960, kind="model", what="x"))
    heights = [float(point.split(",")[1]) for point in next(svg.iter("polyline")).get("points", "").split()]
    assert heights[1] - heights[0] > 200 and "far 9.00 ↑" in texts(svg)


def test_labels_of_equal_baselines_do_not_overlap() -> None:
    scores = Scores({0: 1.0, 1: 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, ())
    svg = fromstring(loss_plot(scores, 380, kind="model", what="data"))
    heights = sorted(float(e.get("y", "")) for e in svg.iter("text") if "label" in e.get("class", ""))
    assert len(heights) == 4 and min(np.diff(heights)) > 15


def test_names_from_sites_are_escaped() -> None:
    plot = loss_plot(Scores({0: 1.0}, {"<script>": 1.0}, ()), 380, kind="model", what='"><b>')
    assert "<script>" not in plot and "<b>" not in plot


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_scales_keep_order_and_ends(low: float, span: float) -> None:
    scale = Scale(low, low + span, 10, 200)
    assert scale(low) == pytest.approx(10) and scale(low + span) == pytest.approx(200)
    assert all(10 - 1e-3 <= scale(tick) <= 200 + 1e-3 for tick in scale.ticks(5))


LAT, LON = np.linspace(84.4, -84.4, 16), np.arange(32) * 11.25


def field_map(units: str, truth: np.ndarray, prediction: np.ndarray) -> Map:
    return Map("<b>", "v", units, None, "title", LAT, LON, truth, prediction, prediction - truth)


def test_truth_and_prediction_share_a_scale_and_the_error_is_centred_on_zero() -> None:
    truth = 250 + 50 * np.cos(np.deg2rad(LAT))[:, None] * np.ones(32)
    drawn = panels(field_map("K", truth, truth + 4), "m")
    bars = [[element.get("stop-color") for element in fromstring(svg).iter("stop")] for _, svg in drawn.pictures]
    ticks = [texts(fromstring(svg)) for _, svg in drawn.pictures]
    assert bars[0] == bars[1] != bars[2] and ticks[0] == ticks[1]
    assert "0" in ticks[2] and bars[2][len(bars[2]) // 2] in ("#f7f6f6", "#f6f7f7", "#f7f7f7")
    assert "Area-weighted RMS error 4.00 K" in drawn.note


def test_the_rms_error_is_weighted_by_area() -> None:
    """An error at the poles alone must weigh less than the share of the grid's rows there."""
    truth = np.zeros((16, 32))
    prediction = truth.copy()
    prediction[[0, -1]] = 1.0
    weight = np.cos(np.deg2rad(LAT))
    expected = math.sqrt(2 * weight[0] / weight.sum())
    assert f"error {expected:.3f} m/s" in panels(field_map("m/s", truth, prediction), "m").note


@pytest.mark.parametrize("units", ["K", "kg/kg", "m/s"])
@pytest.mark.parametrize("factor", [0.0, 1.0, 1e-300, 1e30])
def test_fields_of_any_size_are_drawn(units: str, factor: float) -> None:
    """Constant fields and a model that ran away: the picture says that it leaves the scale, nothing fails."""
    wave = np.sin(np.deg2rad(LON)) * np.ones((16, 1))
    drawn = panels(field_map(units, wave, wave * factor), "m")
    assert all("data:image/png;base64," in svg for _, svg in drawn.pictures)
    assert ("leaves the colour scale" in drawn.note) == (factor == 1e30)


def test_a_map_goes_once_around_without_a_seam() -> None:
    """The image's first and last columns lie half a cell from each other across the date line."""
    from base64 import b64decode
    from io import BytesIO

    from PIL import Image

    wave = np.cos(np.deg2rad(LON)) * np.ones((16, 1))
    svg = panels(field_map("K", wave, wave), "m").pictures[0][1]
    uri = next(fromstring(svg).iter("image")).get("href", "")
    pixels = np.asarray(Image.open(BytesIO(b64decode(uri.partition(",")[2]))).convert("RGB"), int)
    assert pixels.shape == (320, 640, 3)
    assert np.abs(pixels[:, 0] - pixels[:, -1]).max() < 40 < np.abs(pixels[:, 0] - pixels[:, 320]).max()
    assert (pixels.min(axis=2) < 250).all(), "no white margin at the poles"
