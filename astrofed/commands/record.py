"""`astrofed report` and `astrofed verify`: look at the record of a run."""

from pathlib import Path
from typing import Annotated

import typer

from astrofed.commands.output import console, print_json
from astrofed.commands.run import Json

Run = Annotated[Path, typer.Argument(help="A run's folder, such as runs/quickstart.", show_default=False)]


def report(run: Run, as_json: Json = False) -> None:
    """Write a run's report anew from its record."""
    from astrofed.server.report import write_report

    path = write_report(run)
    if as_json:
        print_json({"report": str(path)})
    else:
        console().print(str(path), markup=False, soft_wrap=True)


def verify(run: Run, as_json: Json = False) -> None:
    """Check that a run's record is whole: the chain of its lines, and its checkpoints against it."""
    from astrofed.server.record import verify_run

    found = verify_run(run)
    if as_json:
        print_json({"run": str(run), "lines": found.lines, "rounds": found.rounds, "checkpoints": found.checkpoints})
    else:
        text = f"{found.lines} lines, {found.rounds} rounds, {found.checkpoints} checkpoints: chained and unchanged"
        console().print(text, markup=False)
