"""Each participant's own figures, for a run's report."""

from dataclasses import dataclass

from astrofed.server.report_numbers import count
from astrofed.server.report_participation import used
from astrofed.server.report_run import Run
from astrofed.server.report_scores import baseline_names


@dataclass(frozen=True)
class SiteRow:
    """One participant: what it enrolled with and how the model does on its own data. None: not known."""

    name: str
    role: str
    description: str
    examples: int | None
    held_out: int | None
    units: str
    loss: float | None
    unadapted: float | None  # the shared model's loss there, where `loss` is that of the site's own adapted one
    own: float | None  # a customer's own model's loss there, where `loss` is the shared one's
    baseline: float | None  # headline loss of the baseline that the table names
    used: int  # rounds in which its update entered the model
    attack: str


@dataclass(frozen=True)
class Sites:
    """All participants of the plan."""

    baseline: str  # what the sites' losses are compared with; empty: there is nothing
    rows: tuple[SiteRow, ...]


def sites(run: Run) -> Sites:
    """Return a row for each participant of the plan, enrolled or not, with its last evaluation."""
    last = next((entry.sites for entry in reversed(run.rounds) if entry.sites), {})
    first = run.rounds[0].sites if run.rounds else {}
    enrolled = {site.participant: site for site in run.start.enrolled}
    baseline = next((name for metrics in first.values() for name in baseline_names(metrics)), "")
    rows = []
    for participant in run.plan.participants:
        site = enrolled.get(participant.name)
        rows.append(
            SiteRow(
                name=participant.name,
                role=participant.role,
                description=site.description if site else "not enrolled",
                examples=site.num_examples if site else None,
                held_out=site.num_eval_examples if site else None,
                units=f"{count(site.num_units)} ({site.unit})" if site else "",
                loss=last.get(participant.name, {}).get("loss"),
                unadapted=last.get(participant.name, {}).get("unadapted/loss"),
                own=last.get(participant.name, {}).get("adapted/loss"),
                baseline=first.get(participant.name, {}).get(f"baseline/{baseline}/loss"),
                used=sum(participant.name in used(entry) for entry in run.trained),
                attack=participant.attack.name if participant.attack else "",
            )
        )
    return Sites(baseline, tuple(rows))
