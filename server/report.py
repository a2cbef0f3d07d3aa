"""The report of a run: one HTML file that needs nothing else, written from the run's folder alone.

All text is escaped, since names, reasons and metrics come from participants, and the page forbids itself scripts and
every request. The same record gives the same bytes.
"""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from astrofed.server import report_numbers as numbers
from astrofed.server.report_calibration import calibration, fewer_modalities, reliability_plot
from astrofed.server.report_evolution import Evolution, evolution_section
from astrofed.server.report_maps import Panels, panels
from astrofed.server.report_participation import MARKS, matrix, reasons
from astrofed.server.report_plots import loss_plot, profile_plot
from astrofed.server.report_run import Run, key_facts, open_run
from astrofed.server.report_scores import loss_phrase, physics, scores
from astrofed.server.report_search import Search, search_section
from astrofed.server.report_sites import sites
from astrofed.server.report_words import attacks, guarantees, verdict
from astrofed.server.showcase import ShowcaseDamaged, read_showcase, write_showcase
from astrofed.shared.files import write_atomically

__all__ = ["REPORT", "write_report", "write_showcase"]

REPORT = "report.html"
_MOST_MAPS = 12


def write_report(run: Path) -> Path:
    """Write `report.html` into a run's folder, finished or not, and return its path.

    Raises:
        NoRun: the folder holds no run, or one in which nobody has enrolled yet.
        RecordBroken: the record was edited or is damaged.
        CannotWrite: disk full, or not writable.
    """
    path = run / REPORT
    write_atomically(path, _page(open_run(run), search_section(run), evolution_section(run), *_maps(run)).encode())
    return path


def _page(run: Run, search: Search | None, evolution: Evolution | None, maps: list[Panels], maps_missing: str) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    trained, unseen = scores(run.rounds, "metrics"), scores(run.rounds, "unseen")
    return environment.get_template("report.html").render(
        run=run,
        search=search,
        evolution=evolution,
        numbers=numbers,
        verdict=verdict(run, trained),
        attacks=attacks(run),
        facts=key_facts(run),
        trained=trained,
        unseen=unseen,
        unit=loss_phrase(run.plan),
        matrix=matrix(run),
        marks=MARKS,
        reasons=reasons(run),
        sites=sites(run),
        guarantees=guarantees(run),
        privacy=run.rounds[-1].privacy if run.rounds else (),
        physics=physics(run.rounds),
        calibration=calibration(run),
        fewer=fewer_modalities(run),
        reliability_plot=reliability_plot,
        maps=maps,
        maps_missing=maps_missing,
        loss_plot=loss_plot,
        profile_plot=profile_plot,
    )


def _maps(run: Path) -> tuple[list[Panels], str]:
    """Return a run's maps drawn, and why there are none where they can't be read: the rest of the report needs none."""
    try:
        found = read_showcase(run)
    except ShowcaseDamaged as error:
        return [], str(error)
    return [panels(item, f"map{index}") for index, item in enumerate(found[:_MOST_MAPS])], ""
