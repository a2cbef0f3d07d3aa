"""The `astrofed` command. Each group of commands lives in `astrofed.commands` and imports heavy things when it runs."""

import sys
from typing import NoReturn

import typer

from astrofed.commands import bench, client, data, export, plan, record, run, server

app = typer.Typer(
    name="astrofed",
    epilog="First steps: astrofed simulate configs/quickstart.toml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(epilog="Example: astrofed simulate configs/quickstart.toml --set rounds=3 --json")(run.simulate)
app.command(epilog="Example: astrofed train configs/quickstart.toml --mode single --rounds 5")(run.train)
app.command(epilog="Example: astrofed plugins --plugin my_rule.py --test")(plan.plugins)
app.command(epilog="Example: astrofed report runs/quickstart")(record.report)
app.command(epilog="Example: astrofed verify runs/quickstart")(record.verify)
app.command(epilog="Example: astrofed export runs/quickstart --onnx climate.onnx")(export.export)
app.add_typer(plan.app, name="plan")
app.add_typer(data.app, name="data")
app.add_typer(client.app, name="client")
app.add_typer(server.app, name="server")
app.add_typer(bench.app, name="bench")


def _version(value: bool) -> None:
    if value:
        from astrofed import __version__

        sys.stdout.write(f"astrofed {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Federated learning for astrobiology: robust to lying sites, private at the site, physics that is physics."""


def main() -> NoReturn:
    """Run the command line: exit code 0 for success, 2 for a user's mistake (no traceback), 1 for failures."""
    from astrofed.shared.errors import AstrofedError

    try:
        app()
    except AstrofedError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _complain("interrupted; what was complete is kept")
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
        sys.exit(0)
    sys.exit(0)


def _complain(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, highlight=False, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), message))


if __name__ == "__main__":
    main()
