"""`astrofed plan check` and `astrofed plugins`: what a plan would do, and what plans can name."""

from pathlib import Path
from typing import Annotated

import typer

from astrofed.commands.output import console, print_json
from astrofed.commands.run import Json, PlanFile, PluginFile, Set

app = typer.Typer(help="Look at a plan before it runs.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Look at a plan before it runs."""


@app.command(epilog="Example: astrofed plan check configs/quickstart.toml --set strategy.f=2")
def check(plan: PlanFile, overrides: Set = None, plugin: PluginFile = None, as_json: Json = False) -> None:
    """Print the resolved plan and what it guarantees, or what is wrong with it."""
    import tomli_w

    from astrofed.shared import registry
    from astrofed.shared.plan import load_plan
    from astrofed.simulations.compatibility import check_plan

    for file in plugin or []:
        registry.load_plugin_file(file)
    loaded = load_plan(plan, overrides or [])
    guarantees = check_plan(loaded)
    if as_json:
        print_json({"plan": loaded.to_dict(), "guarantees": guarantees})
        return
    screen = console()
    screen.print(tomli_w.dumps(loaded.to_dict()), markup=False)
    screen.print("[bold]What this plan guarantees[/]")
    for line in guarantees:
        screen.print(f"  {line}", markup=False)


@app.command(epilog="Example: astrofed plan matrix --out docs/compatibility.md")
def matrix(
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write Markdown there.")] = None,
    as_json: Json = False,
) -> None:
    """Show which combinations of mode, strategy or rule, privacy and engine run, and why the others don't."""
    import sys
    from dataclasses import asdict

    from astrofed.shared.files import write_atomically
    from astrofed.simulations.compatibility_matrix import combinations, matrix_markdown

    if out is not None:
        write_atomically(out, matrix_markdown().encode())
    if as_json:
        print_json({"combinations": [asdict(each) for each in combinations()]})
    elif out is None:
        sys.stdout.write(matrix_markdown())


def plugins(
    plugin: PluginFile = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="Only tasks, models, strategies, rules or attacks.")
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Run the contract tests on the classes of the --plugin files.")
    ] = False,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="A plan that names them; tasks, models and strategies need one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List every task, model, strategy, rule and attack that a plan can name, with where each comes from."""
    from rich.markup import escape
    from rich.table import Table

    from astrofed.shared import registry
    from astrofed.shared.plan import PlanError

    if kind is not None and kind not in registry.KINDS:
        raise PlanError(f"--kind {kind!r}: expected one of {', '.join(registry.KINDS)}")
    if test or plan is not None:
        _test_plugins(plugin or [], kind, plan, as_json)
        return
    for file in plugin or []:
        registry.load_plugin_file(file)
    found = [entry for each in registry.KINDS if kind in (None, each) for entry in registry.plugins(each)]
    if as_json:
        rows = [{"kind": e.kind, "name": e.name, "origin": e.origin, "summary": e.summary} for e in found]
        print_json({"plugins": rows})
        return
    table = Table("kind", "name", "what it is", "from", box=None, header_style="bold")
    for entry in found:
        table.add_row(entry.kind, escape(entry.name), escape(entry.summary), escape(entry.origin))
    console().print(table)


def _test_plugins(files: list[Path], kind: str | None, plan: Path | None, as_json: bool) -> None:
    from astrofed.shared import registry
    from astrofed.shared.plan import PlanError
    from astrofed.testing import check_plugin

    if not files:
        raise PlanError("--test: name the files to test with --plugin FILE; what ships is tested with astrofed itself")
    found = [entry for file in files for entry in registry.load_plugin_file(file) if kind in (None, entry.kind)]
    rows = []
    for entry in found:
        held = check_plugin(entry.kind, entry.name, plan=plan)
        rows.append({"kind": entry.kind, "name": entry.name, "holds": held})
        if not as_json:
            console().print(f"{entry.kind} {entry.name}", style="bold", highlight=False)
            for line in held:
                console().print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print_json({"tested": rows})
