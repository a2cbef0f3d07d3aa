"""`astrofed server`: what a coordinator does, from the first key to the last round."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from astrofed.commands.output import console, only_json, print_json
from astrofed.commands.run import Json, PlanFile, Set

app = typer.Typer(help="What a coordinator does: keys, sites and runs on real machines.", no_args_is_help=True)
Home = Annotated[
    Path,
    typer.Option("--home", envvar="ASTROFED_SERVER", metavar="DIR", help="The server's folder.", show_default=True),
]
HERE = Path("astrofed-server")


class What(StrEnum):
    """What can be rotated."""

    CA = "ca"
    PLAN_KEY = "plan-key"


Run = Annotated[str, typer.Argument(help="The run's name.", show_default=False)]


@app.callback()
def _group() -> None:
    """What a coordinator does: keys, sites and runs on real machines."""


@app.command(epilog='Example: astrofed server init --host fl.example.org --name "Origins network"')
def init(
    host: Annotated[
        str | None, typer.Option("--host", help="Name or address by which sites reach it; needed the first time.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The coordinator's name, for people.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="The port that sites reach: 8443 if not given.")] = None,
    listen: Annotated[
        str | None, typer.Option("--listen", help="The address of this machine to listen on: all if not given.")
    ] = None,
    admin_port: Annotated[
        int | None, typer.Option("--admin-port", help="Health and metrics, on loopback: 8444 if not given.")
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option("--also", metavar="NAME", help="A further name or address for the certificate.")
    ] = None,
    home: Home = HERE,
) -> None:
    """Make the server's folder: an authority of its own, a certificate, the key that signs plans, server.toml.

    Run again, it changes what is given and leaves all else as it is.
    """
    from astrofed.server.service.setup import make_server

    say = _say()
    given = {"name": name, "host": host, "port": port, "listen": listen, "admin_port": admin_port, "other_names": also}
    for line in make_server(home, {key: value for key, value in given.items() if value is not None}):
        say(line)


@app.command(epilog="Example: astrofed server enroll kepler-request.json")
def enroll(
    request: Annotated[Path, typer.Argument(help="The request that a site sent.", show_default=False)],
    federation: Annotated[
        list[str] | None, typer.Option("--federation", metavar="NAME", help="Which federations it joins; repeatable.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="The site has a new key; refuse its old one.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where the welcome is written.", show_default=False)
    ] = None,
    home: Home = HERE,
) -> None:
    """Enroll a site that sent a request; show the fingerprint to compare and write the welcome to send back."""
    from astrofed.server.service.setup import enroll_site

    say = _say()
    for line in enroll_site(home, request, tuple(federation or ["default"]), replace=replace, out=out):
        say(line)


@app.command(epilog="Example: astrofed server revoke kepler")
def revoke(
    site: Annotated[str, typer.Argument(help="The site's name.", show_default=False)], home: Home = HERE
) -> None:
    """Refuse a site's key from now on; a running server does so at its next request."""
    from astrofed.server.service.setup import open_home
    from astrofed.server.service.sites import Sites

    found, new = Sites(open_home(home).sites).revoke(site)
    say = _say()
    say(f"{site!r} is refused from now on" if new else f"{site!r} was revoked before, at {found.revoked}")
    say(f"its key {found.fingerprint[:16]}… stays refused; the site can come back with a new key only")


@app.command(epilog="Example: astrofed server renew")
def renew(
    force: Annotated[bool, typer.Option("--force", help="Also if the certificate is good for long.")] = False,
    home: Home = HERE,
) -> None:
    """Issue the server a new certificate if the old one ends soon or has other names; sites need not do anything."""
    from astrofed.server.service.setup import renew_certificate

    _say()(renew_certificate(home, force=force))


@app.command(epilog="Example: astrofed server rotate plan-key --days 30")
def rotate(
    what: Annotated[What, typer.Argument(help="The authority, or the key that signs plans.", show_default=False)],
    days: Annotated[float, typer.Option("--days", min=0.0, help="How long old and new are both trusted.")] = 30.0,
    finish: Annotated[bool, typer.Option("--finish", help="Use the new one from now on.")] = False,
    home: Home = HERE,
) -> None:
    """Replace the authority or the plan key: write each site a newer welcome now, and change over when the days end.

    Run again, it says how things stand and writes what is missing. With --days 0 the old one counts no more at once.
    """
    from astrofed.server.service.setup import open_home
    from astrofed.server.service.welcomes import rotate as rotated

    say = _say()
    for line in rotated(open_home(home), what.value, days=days, finish=finish):
        say(line)


@app.command(epilog="Example: astrofed server start --home /srv/astrofed")
def start(home: Home = HERE) -> None:
    """Serve sites and work on the queue of runs, in the foreground, until Ctrl-C or SIGTERM."""
    from astrofed.server.service.serve import serve

    serve(home, _say())


@app.command(epilog="Example: astrofed server submit plan.toml --wait 600 --quorum 3")
def submit(
    plan: PlanFile,
    overrides: Set = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The run's name, by default the plan's.", show_default=False)
    ] = None,
    federation: Annotated[str, typer.Option("--federation", help="The federation whose sites take part.")] = "default",
    wait: Annotated[float, typer.Option("--wait", min=1.0, help="How long to wait for its sites, in seconds.")] = 600.0,
    quorum: Annotated[
        int | None,
        typer.Option("--quorum", min=1, help="Begin with so many training sites, if not all have come by then."),
    ] = None,
    valid_days: Annotated[float, typer.Option("--valid-days", min=0.01, help="How long sites accept the plan.")] = 30.0,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Sign a plan and put it into the queue. Its participants are enrolled sites; `data` names a dataset there."""
    from astrofed.server.service.setup import submit_plan
    from astrofed.shared.plan import load_plan
    from astrofed.simulations.compatibility import check_plan

    with only_json(as_json):
        check_plan(load_plan(plan, overrides or []))
        job, new = submit_plan(
            home, plan, overrides or [], name, federation, wait_s=wait, quorum=quorum, valid_days=valid_days
        )
    if as_json:
        print_json({"run": job.run, "new": new})
        return
    say = _say()
    say(f"run {job.run!r} is in the queue" if new else f"run {job.run!r} was submitted before, with the same plan")
    say(f"see how it goes: astrofed server status {job.run!r}")


@app.command("list", epilog="Example: astrofed server list")
def list_runs(home: Home = HERE, as_json: Json = False) -> None:
    """List the runs that were submitted, and how each stands."""
    from astrofed.server.service.overview import runs

    with only_json(as_json):
        found = runs(home)
    if as_json:
        print_json({"runs": [run.to_dict() for run in found]})
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("run", "status", "round", "loss", "", box=None, header_style="bold")
    for run in found:
        table.add_row(*(escape(cell) for cell in run.cells()))
    console().print(table if found else "no run was submitted yet")


@app.command(epilog="Example: astrofed server status quickstart")
def status(
    run: Annotated[str | None, typer.Argument(help="A run's name; without it, the server's status.")] = None,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Say how the server and its sites stand, or how one run does."""
    from astrofed.server.service.overview import run_status, server_status

    with only_json(as_json):
        found = server_status(home) if run is None else run_status(home, run)
    if as_json:
        print_json(found.to_dict())
        return
    say = _say()
    for line in found.lines():
        say(line)


@app.command(epilog="Example: astrofed server stop quickstart")
def stop(run: Run, home: Home = HERE) -> None:
    """End a run after the round in progress; it can be resumed."""
    from astrofed.server.service.jobs import Jobs
    from astrofed.server.service.setup import open_home

    _say()(f"run {run!r} {Jobs(open_home(home).jobs).stop(run)}")


@app.command(epilog="Example: astrofed server resume quickstart")
def resume(run: Run, home: Home = HERE) -> None:
    """Let a run that was stopped or failed go on from its record."""
    from astrofed.server.service.jobs import Jobs
    from astrofed.server.service.setup import open_home

    _say()(f"run {run!r} {Jobs(open_home(home).jobs).resume(run)}")


@app.command(epilog="Example: astrofed server logs quickstart --lines 50")
def logs(
    run: Annotated[str | None, typer.Argument(help="A run's name; without it, the server's own logs.")] = None,
    lines: Annotated[int, typer.Option("--lines", min=1, help="How many lines of each log.")] = 20,
    home: Home = HERE,
) -> None:
    """Show the last lines of a run's log, or of the server's: who tried what, what was restarted."""
    from astrofed.server.service.overview import last_lines

    say = _say()
    for title, text in last_lines(home, run, lines):
        say(f"== {title}")
        for line in text:
            say(line)


def _say() -> Callable[[str], None]:
    screen = console()

    def say(text: str) -> None:
        screen.print(text, markup=False, soft_wrap=True)

    return say
