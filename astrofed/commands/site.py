"""`astrofed client init`, `join` and `start`: a site's part in federations on real machines."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from astrofed.commands.output import console

Folder = Annotated[
    Path, typer.Argument(envvar="ASTROFED_HOME", help="The site's home folder, by default $ASTROFED_HOME, or here.")
]
HERE = Path()


def init(
    name: Annotated[str, typer.Option("--name", help="The site's name, as plans will call it.", show_default=False)],
    contact: Annotated[str, typer.Option("--contact", help="Whom the coordinator can ask.", show_default=False)],
    data: Annotated[
        list[str],
        typer.Option("--data", metavar="NAME=PATH", help="A dataset; repeatable.", show_default=False),
    ],
    home: Folder = HERE,
) -> None:
    """Make a site's home: a node key, site.toml, a careful policy.toml, and a request to send to a coordinator.

    The request holds name, contact, and each dataset's fingerprint and number of privacy units; never data. Run again,
    it makes the request anew and leaves all else as it is.
    """
    from astrofed.client.service.setup import make_home

    _say_all(make_home(home, name, contact, dict(_dataset(each) for each in data)))


def join(
    welcome: Annotated[Path, typer.Argument(help="The file that the coordinator sent back.", show_default=False)],
    home: Folder = HERE,
    expected: Annotated[
        str | None,
        typer.Option("--fingerprint", help="The plan key's fingerprint, as the coordinator read it out."),
    ] = None,
) -> None:
    """Join a coordinator: compare the fingerprint of the key that signs its plans, and trust that key from now on.

    A newer welcome of the same coordinator, signed by the key that the site trusts, is taken without comparing; it
    counts from the next start of the node.
    """
    from astrofed.client.service.home import Home
    from astrofed.client.service.setup import check_fingerprint, look_at_welcome, take_welcome

    found = Home.open(home)
    read, fingerprint = look_at_welcome(found, welcome)
    if fingerprint is not None:
        check_fingerprint(fingerprint, _ask(read.coordinator, fingerprint) if expected is None else expected)
    _say_all(take_welcome(found, read))


def show_noise_key(home: Folder = HERE) -> None:
    """Show this site's entry for other sites' policies: its name, and the public key by which they share noise with it.

    The first time the key is made. Let each operator compare it over a channel that is not the coordinator's.
    """
    from astrofed.client.privacy.noise_keys import noise_key, public_digits
    from astrofed.client.service.home import Home

    name = Home.open(home).site_name
    console().print(
        f"[[peers]]\nname = {json.dumps(name)}\npublic_key = {json.dumps(public_digits(noise_key(home)))}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def start(home: Folder = HERE) -> None:
    """Serve requests in the foreground until Ctrl-C or SIGTERM. What happens is shown and kept in logs/node.log."""
    from astrofed.client.service.start import serve

    serve(home)


def _ask(coordinator: str, fingerprint: str) -> str:
    from astrofed.client.service.setup import WrongFingerprint

    question = f"Does {coordinator!r} read out the plan key's fingerprint {fingerprint}?"
    if not sys.stdin.isatty():
        raise WrongFingerprint(f"{question} Nobody is here to answer: give what it reads out with --fingerprint")
    return fingerprint if typer.confirm(question) else "another one"


def _dataset(text: str) -> tuple[str, Path]:
    from astrofed.simulations.bundled import PREFIX, resolve_bundled

    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        raise typer.BadParameter(f"{text!r} is not NAME=PATH, such as kepler=/data/kepler.parquet", param_hint="--data")
    return name, resolve_bundled(path) if path.startswith(PREFIX) else Path(path)


def _say_all(lines: Iterator[str]) -> None:
    screen = console()
    for line in lines:
        screen.print(line, markup=False, soft_wrap=True)
