"""Whether a run's predictions are as uncertain as they say: a reliability curve, and intervals by site and pooled.

Everything comes from what the sites themselves counted on their held-out data; empty where a task gives no uncertainty.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from astrofed.server.report_plots import Scale, add, drawing, markup
from astrofed.server.report_run import Run
from astrofed.shared.models import spectrum_layout, surrogate_layout, transit_layout
from astrofed.shared.registry import normalise
from astrofed.shared.uncertainty import LEVEL, LEVELS, Pooled, pooled_conformal

_MOST = 60  # sites that are listed
_TARGETS = {"transits": transit_layout.TARGETS, "spectrum": spectrum_layout.TARGETS}  # others: the surrogate's


@dataclass(frozen=True)
class SiteIntervals:
    """How often one site's intervals at 90 % held the truth; None: not evaluable."""

    name: str
    unseen: bool
    gaussian: float | None  # the network's own
    conformal: float | None  # calibrated on the site's own data
    crps: float | None
    nll: float | None


@dataclass(frozen=True)
class PooledIntervals:
    """One target's intervals, calibrated and tested on all training sites together."""

    target: str
    unit: str
    pooled: Pooled | None  # None: not evaluable
    sharpness: float | None  # mean width of the network's own 90 % intervals


@dataclass(frozen=True)
class Calibration:
    """What a report shows of uncertainty."""

    sites: tuple[SiteIntervals, ...]
    pooled: tuple[PooledIntervals, ...]
    coverage: float | None  # of all pooled intervals
    curve: tuple[tuple[float, float], ...]  # nominal and found coverage, of the training sites


def calibration(run: Run) -> Calibration | None:
    """Return the last evaluated round's calibration; None where the task gives no uncertainty."""
    evaluated = [entry for entry in run.rounds if "reliability/50" in entry.metrics]
    if not evaluated:
        return None
    last, trainers = evaluated[-1], set(run.trainers)
    trained = [metrics for name, metrics in last.sites.items() if name in trainers]
    targets = _TARGETS.get(normalise(run.plan.task.name), surrogate_layout.TARGETS)
    pooled = tuple(_pooled(target.name, target.unit, trained, last.metrics) for target in targets)
    known = [row.pooled for row in pooled if row.pooled is not None]
    return Calibration(
        sites=tuple(_site(name, name not in trainers, own) for name, own in list(last.sites.items())[:_MOST]),
        pooled=pooled,
        coverage=sum(p.coverage * p.test for p in known) / sum(p.test for p in known) if known else None,
        curve=tuple((level, last.metrics[key]) for level in LEVELS if (key := _key(level)) in last.metrics),
    )


def fewer_modalities(run: Run) -> tuple[tuple[str, float, float | None], ...]:
    """Return the errors with fewer modalities, a mean over the sites that have them: name, training sites, unseen."""
    entry = next((e for e in reversed(run.rounds) if e.metrics), None)
    if entry is None:
        return ()
    found = []
    for key, value in entry.metrics.items():
        match = re.fullmatch("(only|without)/([a-z]+)/loss", key)
        if match:
            found.append((f"{match[1]} {match[2]}", value, entry.unseen.get(key)))
    return tuple(sorted(found)[:_MOST])


def reliability_plot(shown: Calibration) -> Markup:
    """Draw found against nominal coverage; on the diagonal a forecast is as uncertain as it says."""
    size, margin = 300.0, 44.0
    svg = drawing(size, size, "Reliability: how often central intervals hold the truth, against how often they should")
    x, y = Scale(0, 1, margin, size - 12), Scale(0, 1, size - margin, 12)
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        add(svg, "line", {"class": "grid", "x1": x(0), "x2": x(1), "y1": y(tick), "y2": y(tick)})
        add(svg, "text", {"class": "tick", "x": x(0) - 8, "y": y(tick) + 4, "text-anchor": "end"}, f"{100 * tick:.0f}")
        add(svg, "text", {"class": "tick", "x": x(tick), "y": y(0) + 18, "text-anchor": "middle"}, f"{100 * tick:.0f}")
    add(svg, "line", {"class": "frame", "x1": x(0), "y1": y(0), "x2": x(1), "y2": y(1)})
    points = [(0.0, 0.0), *shown.curve, (1.0, 1.0)]
    path = " ".join(f"{x(a):.1f},{y(min(max(b, 0.0), 1.0)):.1f}" for a, b in points)
    add(svg, "polyline", {"class": "curve model", "points": path})
    add(svg, "text", {"class": "label", "x": (x(0) + x(1)) / 2, "y": size - 6, "text-anchor": "middle"}, "nominal, %")
    return markup(svg)


def _key(level: float) -> str:
    return f"reliability/{round(100 * level)}"


def _site(name: str, unseen: bool, metrics: Mapping[str, float]) -> SiteIntervals:
    return SiteIntervals(
        name=name,
        unseen=unseen,
        gaussian=metrics.get(_key(LEVEL)),
        conformal=metrics.get("conformal/coverage"),
        crps=metrics.get("crps"),
        nll=metrics.get("nll"),
    )


def _pooled(target: str, unit: str, sites: Sequence[Mapping[str, float]], mean: Mapping[str, float]) -> PooledIntervals:
    calibration_counts, test_counts = (
        [conformal_counts(metrics, kind, target) for metrics in sites] for kind in ("calibration", "test")
    )
    return PooledIntervals(
        target, unit, pooled_conformal(calibration_counts, test_counts), mean.get(f"sharpness/{target}")
    )


def conformal_counts(metrics: Mapping[str, float], kind: str, target: str) -> dict[int, int]:
    """Return one site's counts of "calibration" or "test" scores by bin; what is no count is left out."""
    found = {}
    for key, value in metrics.items():
        match = re.fullmatch(rf"conformal/{kind}/{re.escape(target)}/(\d{{1,4}})", key)
        if match and 0 < value < 1e12:
            found[int(match[1])] = int(value)
    return found
