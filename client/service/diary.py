"""What a node says of itself: on the terminal for people, and in a log that is kept; never a value of the data."""

import logging
import sys
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path

_SIZE, _KEPT = 5_000_000, 5


class Diary:
    """Writes each line to the log, and shows it."""

    def __init__(self, folder: Path | None, show: Callable[[str], None] | None = None) -> None:
        """`folder`: of the log, None for none; `show`: where people see a line, by default the standard error."""
        self._show = show or _to_terminal
        self._log = logging.Logger("astrofed.node")  # of its own: no library's settings reach it
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = RotatingFileHandler(folder / "node.log", maxBytes=_SIZE, backupCount=_KEPT, encoding="utf-8")
            file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            self._log.addHandler(file)

    def connected(self, address: str, node: int) -> None:
        """Say that the server knows this node."""
        self.say(f"connected to {address} as node {node}")

    def say(self, text: str) -> None:
        """Say what goes on."""
        self._log.info(_one_line(text))
        self._show(_one_line(text))

    def warn(self, text: str) -> None:
        """Say what went wrong."""
        self._log.warning(_one_line(text))
        self._show(f"warning: {_one_line(text)}")

    def debug(self, text: str) -> None:
        """Write what only a search for errors needs."""
        self._log.debug(_one_line(text))

    def close(self) -> None:
        """Close the log."""
        for handler in list(self._log.handlers):
            self._log.removeHandler(handler)
            handler.close()


def _one_line(text: str) -> str:
    """Return a text that can't forge lines of the log, whoever wrote parts of it."""
    return "".join(character if character.isprintable() else " " for character in text)[:2000]


def _to_terminal(line: str) -> None:
    from datetime import datetime

    sys.stderr.write(f"{datetime.now():%H:%M:%S} {line}\n")
    sys.stderr.flush()
