"""`astrofed bench`: performance as ratios to named peers, measured in one run on this machine."""

from typing import Annotated

import typer

from astrofed.commands.output import console, only_json, print_json
from astrofed.commands.run import Json

app = typer.Typer(help="Measure astrofed against named peers on this machine.", no_args_is_help=True)
Quick = Annotated[bool, typer.Option("--quick", help="Fewer repeats and sizes; about a minute.")]


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
