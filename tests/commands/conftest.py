"""What the commands' tests share: the command line in this process."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from astrofed.cli import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def astrofed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command line in this process: exit code, standard output and standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["astrofed", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, error = capsys.readouterr()
        return int(str(left.value.code or 0)), out, error

    return run
