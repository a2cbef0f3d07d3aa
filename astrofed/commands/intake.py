"""`astrofed data import`: a customer's folder becomes a site."""

from pathlib import Path
from typing import Annotated

import typer

from astrofed.commands.output import console, only_json, print_json
from astrofed.commands.run import Json


def import_data(
    source: Annotated[Path, typer.Argument(help="A folder with a Zarr group or Parquet files.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The new site's folder.", show_default=False)],
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="A plan of mode 'customer' that the site joins.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="What the site is called in the plan.")] = "customer",
    contract: Annotated[
        Path | None, typer.Option("--contract", metavar="FILE", help="The contract, reviewed and confirmed.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Confirm the inferred contract, guesses included.")] = False,
    unit: Annotated[str | None, typer.Option("--unit", help="What one privacy unit is, such as planet.")] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="The platform's column that names each row's privacy unit.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", min=1e-6, help="Privacy budget for ever; without it none is asked for.")
    ] = None,
    delta: Annotated[float, typer.Option("--delta", min=1e-12, max=0.5, help="Delta of the same budget.")] = 1e-5,
    reference: Annotated[
        Path | None, typer.Option("--reference", metavar="RUN", help="A run of the federation to compare a cube with.")
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="Train at once by the plan.")] = False,
    as_json: Json = False,
) -> None:
    """Make a site of a customer's folder: contract, check, quality, policy, plan, training, and a report of it all."""
    from astrofed.client.intake.site import Wishes
    from astrofed.shared.plan import PlanError, load_plan

    if train and plan is None:
        raise PlanError("--train: there is nothing to train by; give a plan of mode 'customer' by --plan")
    wishes = Wishes(contract, yes, unit, key, epsilon, delta)
    screen = console(as_json=as_json)
    base = load_plan(plan) if plan is not None else None
    with only_json(as_json), screen.status("importing …"):
        from astrofed.client.intake.site import take_in
        from astrofed.simulations.intake import customer_plan, federation_scales, write_intake_report, write_plan

        federation = federation_scales(reference) if reference is not None else None
        intake = take_in(source, out, wishes, federation)
        joined = customer_plan(base, intake, name, wishes) if base is not None else None
        if joined is not None:
            write_plan(joined, out)
        report = write_intake_report(intake, joined, None, {})
    screen.print(f"quality {intake.quality.score:.2f} of 1; {intake.rows:,} rows, {intake.units:,} × {intake.unit}")
    told: dict[str, object] = {
        "site": str(out),
        "data": str(intake.data),
        "kind": intake.kind,
        "task": intake.task,
        "fingerprint": intake.fingerprint,
        "quality": {"score": intake.quality.score, **{part.name: part.share for part in intake.quality.parts}},
        "report": str(report),
    }
    if train and joined is not None:
        with only_json(as_json):
            from astrofed.commands.progress import Progress, show_result
            from astrofed.simulations.intake import own_scores
            from astrofed.simulations.simulate import simulate

            with Progress(screen) as progress:
                result = simulate(joined, out=out / "run", observer=progress)
            own = own_scores(result.run, name)
            report = write_intake_report(intake, joined, result, own)
        told |= {"metrics": result.metrics, "own": own, "run": str(result.run)}
        if not as_json:
            show_result(screen, result)
    if as_json:
        print_json(told)
    else:
        screen.print(f"report: {report}", markup=False, soft_wrap=True)
