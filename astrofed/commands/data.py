"""`astrofed data`: look at a dataset before it joins a federation. Nothing leaves the machine."""

from pathlib import Path
from typing import Annotated

import typer

from astrofed.commands.intake import import_data
from astrofed.commands.output import console, print_json
from astrofed.commands.run import Json

app = typer.Typer(help="Look at a dataset: a Zarr v3 cube or a Parquet table.", no_args_is_help=True)
Dataset = Annotated[str, typer.Argument(help="A path, or a shipped dataset such as bundled:worlds/earthlike.")]

app.command(
    "import", epilog="Example: astrofed data import planets/ --plan configs/customer.toml --out site --yes --train"
)(import_data)


def _path(dataset: str) -> Path:
    from astrofed.simulations.bundled import PREFIX, resolve_bundled

    return resolve_bundled(dataset) if dataset.startswith(PREFIX) else Path(dataset)


@app.command(epilog="Example: astrofed data check bundled:worlds/earthlike")
def check(path: Dataset, as_json: Json = False) -> None:
    """Find every problem of a dataset at once; exit code 2 where it can't be used."""
    from dataclasses import asdict

    from rich.markup import escape

    from astrofed.client.data.check import check_dataset

    report = check_dataset(_path(path))
    if as_json:
        problems = [asdict(problem) for problem in report.problems]
        print_json({"path": str(report.path), "kind": report.kind, "ok": report.ok, "fingerprint": report.fingerprint,
                    "problems": problems})  # fmt: skip
    else:
        screen = console()
        for problem in report.problems:
            colour = "red" if problem.severity == "error" else "yellow"
            screen.print(f"[{colour}]{problem.severity}[/] {escape(problem.message)}", soft_wrap=True)
        if report.ok:
            screen.print(f"this {report.kind} can be used; fingerprint {report.fingerprint}", soft_wrap=True)
    if not report.ok:
        raise typer.Exit(2)


@app.command(epilog="Example: astrofed data describe bundled:planets/kepler")
def describe(path: Dataset, as_json: Json = False) -> None:
    """Show what a dataset holds: variables, units, axes, privacy unit; no values."""
    from dataclasses import asdict

    from rich.markup import escape
    from rich.table import Table

    from astrofed.client.data.check import describe_dataset

    found = describe_dataset(_path(path))
    if as_json:
        data = asdict(found)
        print_json(
            {**data, "path": str(found.path), "attributes": dict(found.attributes), "planet": dict(found.planet)}
        )
        return
    screen = console()
    screen.print(f"{found.kind} {found.path}\nfingerprint {found.fingerprint}", markup=False, soft_wrap=True)
    screen.print(f"{found.num_bytes:,} bytes; {found.num_units:,} privacy units ({found.privacy_unit})", markup=False)
    for name, value in (*found.attributes, *found.planet):
        screen.print(f"  {name}: {value}", markup=False)
    table = Table("variable", "unit", "what it is", "shape", box=None, header_style="bold")
    for variable in found.variables:
        shape = ", ".join(f"{axis} {size}" for axis, size in variable.shape)
        table.add_row(*(escape(text) for text in (variable.name, variable.unit, variable.meaning, shape)))
    screen.print(table)


@app.command(epilog="Example: astrofed data stats bundled:worlds/earthlike")
def stats(path: Dataset, as_json: Json = False) -> None:
    """Show minimum, mean, spread and maximum of every variable (area-weighted over a sphere)."""
    import math
    from dataclasses import asdict

    from rich.markup import escape
    from rich.table import Table

    from astrofed.client.data.check import dataset_stats

    rows = dataset_stats(_path(path))
    if as_json:
        whole = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(r).items()} for r in rows]
        print_json({"variables": whole})
        return
    table = Table("variable", "unit", "values", "absent", "min", "mean", "std", "max", box=None, header_style="bold")
    for row in rows:
        numbers = (f"{value:.5g}" for value in (row.minimum, row.mean, row.std, row.maximum))
        table.add_row(escape(row.name), escape(row.unit), f"{row.count:,}", f"{row.absent:,}", *numbers)
    console().print(table)
