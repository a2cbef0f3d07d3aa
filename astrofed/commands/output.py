"""How commands print: people's tables on the standard output, or one JSON object there and nothing else."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def console(*, as_json: bool = False) -> "Console":
    """Return where people's output goes: the standard output, or the standard error when that is kept for JSON."""
    from rich.console import Console

    return Console(stderr=as_json, highlight=False)


def print_json(data: Any) -> None:
    """Print one JSON object; numbers that JSON can't hold are an error, not a guess."""
    sys.stdout.write(json.dumps(data, allow_nan=False) + "\n")
    sys.stdout.flush()


@contextmanager
def only_json(as_json: bool) -> Iterator[None]:
    """Keep the standard output free of what libraries print while a JSON object is being made."""
    if not as_json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield
