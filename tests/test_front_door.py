"""The package as a user meets it in Python."""

import subprocess
import sys
from pathlib import Path

import astrofed

CHECKOUT = Path(__file__).parent.parent


def test_python_started_in_the_checkout_finds_all_of_it() -> None:
    """There the folder `astrofed` hides the installed package, whose other parts lie beside it."""
    code = "import astrofed, astrofed.server, astrofed.simulations.data as d; print(astrofed.simulate.__name__)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert ended.stdout.strip() == "simulate", ended.stderr


def test_every_public_name_is_there() -> None:
    assert all(getattr(astrofed, name) is not None for name in astrofed.__all__)
