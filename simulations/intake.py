"""A customer's new site in a plan of mode 'customer', and the intake report: one Markdown file for the customer."""

import json
from pathlib import Path

import tomli_w

from astrofed.client.intake.quality import FederationScales, Quality
from astrofed.client.intake.site import Intake, Wishes
from astrofed.client.meta.keeping import SCORES
from astrofed.client.policy import POLICY_FILE
from astrofed.client.policy_words import in_words
from astrofed.client.tasks.datacube_scales import FIELD, MEAN
from astrofed.server.beginning import STATISTICS
from astrofed.server.checkpoint import load_arrays
from astrofed.server.record import read_plan
from astrofed.shared.files import write_atomically
from astrofed.shared.models.datacube_layout import DatacubeLayout
from astrofed.shared.plan import Plan, PlanError, load_plan
from astrofed.simulations.result import RunResult
from astrofed.simulations.sites import HOMES, folder_name

PLAN_FILE, REPORT_FILE = "plan.toml", "intake.md"
CLIPPING_NORM = 5.0


def federation_scales(run: Path) -> FederationScales:
    """Return the scales that the worlds of a run were pooled to.

    Raises:
        NoRun: there is no run.
        PlanError: its task has no worlds.
    """
    plan = read_plan(run)
    arrays = load_arrays(run / STATISTICS)
    return FederationScales(DatacubeLayout.of_plan(plan).variables, arrays[MEAN], arrays[FIELD])


def customer_plan(base: Plan, intake: Intake, name: str, wishes: Wishes) -> Plan:
    """Return a plan of mode 'customer' in which the new site stands in the place of the base plan's customer.

    Raises:
        PlanError: the plan is not for such data.
    """
    if base.mode != "customer" or base.customer is None:
        raise PlanError(f"mode: {base.mode!r} has no customer; give a plan with mode = 'customer' by --plan")
    if base.task.name != intake.task:
        raise PlanError(
            f"task: the plan {base.name!r} is for {base.task.name!r}, the data for {intake.task!r}; give another plan"
        )
    data = base.to_dict()
    site = {"name": name, "data": str(intake.data.resolve()), "policy": str((intake.folder / POLICY_FILE).resolve())}
    others = [participant for participant in data["participants"] if participant["name"] != base.customer_site]
    data["participants"] = [*others, site]
    data["customer"] = {**data["customer"], "site": name}
    if wishes.epsilon is not None:
        data["privacy"] = {
            "unit": intake.unit,
            "epsilon": wishes.epsilon,
            "delta": wishes.delta,
            "clipping_norm": CLIPPING_NORM,
        }
    return load_plan(data)


def write_plan(plan: Plan, folder: Path) -> Path:
    """Write a plan into the site's folder and return its path."""
    path = folder / PLAN_FILE
    write_atomically(path, tomli_w.dumps(plan.to_dict()).encode())
    return path


def write_intake_report(intake: Intake, plan: Plan | None, result: RunResult | None, own: dict[str, float]) -> Path:
    """Write what a customer should know of the import, and of the training where there was one.

    `own`: the scores of the site's own model, as they lie at its home.
    """
    lines = [
        f"# Intake of {intake.folder.name}",
        "",
        f"A {intake.kind} for the task “{intake.task}”: {intake.rows:,} rows in {intake.units:,} privacy units "
        f"({intake.unit}). Fingerprint `{intake.fingerprint}`.",
        "",
        f"## Quality: {intake.quality.score:.2f} of 1",
        "",
        *_quality(intake.quality),
        "",
        "## What each column was taken for",
        "",
        *_contract(intake),
        "",
        "## What your site allows",
        "",
        *[f"- {line}" for line in in_words(intake.policy)],
        "",
        "## Training",
        "",
        *_training(plan, result, own),
    ]
    path = intake.folder / REPORT_FILE
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    return path


def own_scores(run: Path, name: str) -> dict[str, float]:
    """Return the scores of the site's own model, as they lie at its home in the run's folder."""
    path = run / HOMES / folder_name(name) / SCORES
    return dict(json.loads(path.read_text(encoding="utf-8"))["after"])


def _quality(quality: Quality) -> list[str]:
    lines = ["| part | share | what was found |", "|---|---|---|"]
    for part in quality.parts:
        share = "not evaluable" if part.share is None else f"{part.share:.2f}"
        lines.append(f"| {part.name} | {share} | {_cell('; '.join(part.findings) or 'nothing to mend')} |")
    return lines


def _contract(intake: Intake) -> list[str]:
    contract = intake.contract
    if contract is None:
        return ["The cube's own metadata are its contract (variables, units, planet); they were checked."]
    lines = ["| the platform's | yours | unit | by |", "|---|---|---|---|"]
    for name, column in contract.columns.items():
        source = column.source or f"{100 * (column.relative or 0):g} % of the value"
        lines.append(f"| {name} | {_cell(source)} | {_cell(column.unit or '')} | {column.origin} |")
    left = ", ".join(contract.left_out) or "none"
    return [*lines, "", f"Columns of yours that are not used: {_cell(left)}."]


def _training(plan: Plan | None, result: RunResult | None, own: dict[str, float]) -> list[str]:
    if plan is None:
        return ["Not trained yet: no plan was given (--plan)."]
    if result is None:
        return [f"Not trained yet. `astrofed train {PLAN_FILE}` trains; the plan lies beside this report."]
    name = str(plan.customer_site)
    first = result.rounds[0].sites.get(name, {})
    shared = next((e.sites[name] for e in reversed(result.rounds) if name in e.sites), {})
    rows = [(f"baseline: {key.split('/')[1]}", value) for key, value in first.items() if _is_headline(key)]
    rows += [("the platform's model", shared["loss"])] if "loss" in shared else []
    rows += [("your own model, adapted at your site", own["loss"])] if "loss" in own else []
    spent = [f"epsilon {s.epsilon:.3f} at delta {s.delta:g}" for s in result.privacy if s.participant == name]
    others = ", ".join(p.name for p in plan.trainers if p.name != name) or "nobody"
    return [
        f"Mode “customer”, {plan.rounds} rounds together with {others}. Errors on your own held-out data:",
        "",
        "| | error |",
        "|---|---|",
        *[f"| {_cell(label)} | {value:.4g} |" for label, value in rows],
        "",
        f"Spent of your privacy budget: {spent[0] if spent else 'nothing; the plan asks for no differential privacy'}.",
        "Your own model never leaves your site; it lies in `"
        f"{result.run.name}/sites/{folder_name(name)}/adapted.safetensors`.",
    ]


def _is_headline(key: str) -> bool:
    return key.startswith("baseline/") and key.endswith("/loss") and key.count("/") == 2


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
