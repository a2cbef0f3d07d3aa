"""`astrofed bench`: performance as ratios to named peers, measured in one run on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from astrofed.commands.output import console, only_json, print_json
from astrofed.commands.run import Json

if TYPE_CHECKING:
    from astrofed.simulations.audit.result import AuditResult
    from astrofed.simulations.bench.aggregation_result import AggregationResult
    from astrofed.simulations.bench.model_result import ModelResult
    from astrofed.simulations.bench.privacy_result import PrivacyResult
    from astrofed.simulations.bench.robustness_table import RobustnessResult
    from astrofed.simulations.bench.utility import UtilityResult

app = typer.Typer(help="Measure astrofed against named peers on this machine.", no_args_is_help=True)
Quick = Annotated[bool, typer.Option("--quick", help="Fewer repeats and sizes; a minute or two.")]


@app.callback()
def _group() -> None:
    """Measure astrofed against named peers on this machine."""


@app.command(epilog="Example: astrofed bench engine --quick --json")
def engine(quick: Quick = False, as_json: Json = False) -> None:
    """Time a round of the embedded engine against Flower's simulation runtime, apple's pfl and a bare loop."""
    with only_json(as_json):
        from astrofed.simulations.bench.engine import run_engine_bench

        result = run_engine_bench(quick=quick)
    if as_json:
        print_json(result.to_dict())
    else:
        console().print(result.table())


@app.command(epilog="Example: astrofed bench aggregation --quick --json")
def aggregation(
    quick: Quick = False,
    as_json: Json = False,
    attacks: Annotated[
        bool, typer.Option("--attacks", help="Train under attack instead: accuracy of each rule; about an hour.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="With --attacks: keep each cell here; a stopped run goes on from it.")
    ] = None,
) -> None:
    """Time the robust rules against Flower's, ByzFL's and the memory's speed (half an hour), or measure their use."""
    result: RobustnessResult | AggregationResult
    with only_json(as_json):
        if attacks:
            from astrofed.simulations.bench.robustness import run_robustness_bench

            result = run_robustness_bench(quick=quick, out=out)
        else:
            from astrofed.simulations.bench.aggregation import run_aggregation_bench

            result = run_aggregation_bench(quick=quick)
    if as_json:
        print_json(result.to_dict())
    else:
        console().print(result.table())


@app.command(epilog="Example: astrofed bench privacy --quick --json")
def privacy(
    quick: Quick = False,
    as_json: Json = False,
    utility: Annotated[
        bool, typer.Option("--utility", help="Measure accuracy instead: federated by us, centralised by Opacus.")
    ] = False,
    audit: Annotated[
        bool, typer.Option("--audit", help="Attack our training instead: is its epsilon true? A minute or two.")
    ] = False,
) -> None:
    """Time a step of private training against plain SGD and Opacus, and compare epsilon with other accountants."""
    if utility and audit:
        raise typer.BadParameter("--utility and --audit are two measurements; give one of them")
    result: UtilityResult | AuditResult | PrivacyResult
    screen = console(as_json=as_json)
    with only_json(as_json):
        if utility:
            from astrofed.simulations.bench.utility import run_utility_bench

            result = run_utility_bench(quick=quick)
        elif audit:
            from astrofed.simulations.audit.result import run_audit

            result = run_audit(quick=quick, done=lambda line: screen.print(line, markup=False))
        else:
            from astrofed.simulations.bench.privacy import run_privacy_bench

            result = run_privacy_bench(quick=quick)
    if as_json:
        print_json(result.to_dict())
    else:
        console().print(result.table())


@app.command(epilog="Example: astrofed bench modes --meta --quick")
def modes(
    quick: Quick = False,
    as_json: Json = False,
    meta: Annotated[bool, typer.Option("--meta", help="Only meta-learning.")] = False,
) -> None:
    """Measure the modes: MAML on sinusoids, few-shot on unseen worlds, one beside Lightning, search, evolution."""
    screen = console(as_json=as_json)
    with only_json(as_json):
        from astrofed.simulations.bench.modes import run_modes_bench

        result = run_modes_bench(quick=quick, meta=meta, done=lambda line: screen.print(line, markup=False))
    if as_json:
        print_json(result.to_dict())
    else:
        console().print(result.table())


@app.command(epilog="Example: astrofed bench model --quick --json")
def model(
    quick: Quick = False,
    as_json: Json = False,
    multimodal: Annotated[
        bool, typer.Option("--multimodal", help="The multi-modal surrogate instead, about ten minutes.")
    ] = False,
) -> None:
    """Measure the datacube network: physics, memory, ONNX, error beside a U-Net, roll-outs; about half an hour."""
    result: ModelResult
    screen = console(as_json=as_json)
    with only_json(as_json):
        if multimodal:
            from astrofed.simulations.bench.multimodal import run_multimodal_bench

            result = run_multimodal_bench(quick=quick, done=lambda line: screen.print(line, markup=False))
        else:
            from astrofed.simulations.bench.model import run_model_bench

            result = run_model_bench(quick=quick, done=lambda line: screen.print(line, markup=False))
    if as_json:
        print_json(result.to_dict())
    else:
        console().print(result.table())


@app.command("round", epilog="Example: astrofed bench round --quick --json")
def deployed_round(
    quick: Quick = False,
    parameters: Annotated[
        int | None,
        typer.Option(min=1, help="Only this size, with the server's memory, without Flower's own."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time a round of a server and four sites over TLS against Flower's own deployment and the bytes alone."""
    with only_json(as_json):
        from astrofed.simulations.bench.round import run_round_bench

        result = run_round_bench(quick=quick, parameters=parameters)
    if as_json:
        print_json(result.to_dict())
    else:
        console().print(result.table())
