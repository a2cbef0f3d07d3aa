"""Cells of the robustness table in a file, each as soon as it is measured, so that a run that was stopped goes on."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from astrofed.shared.errors import UserMistake
from astrofed.shared.files import write_atomically
from astrofed.simulations.bench.robustness_table import Cell


class OtherTable(UserMistake):
    """The file holds no table of this setting."""


class CellStore:
    """Measured cells by defence, split, attack and number of liars; kept in a file if one is given."""

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self._path, self._settings = path, dict(settings)
        self.cells: dict[tuple[str, str, str, int], Cell] = {}
        if path is not None and path.exists():
            for cell in self._read(path):
                self.cells[cell.key] = cell

    def add(self, cell: Cell) -> None:
        """Keep a cell.

        Raises:
            CannotWrite: the file can't be written.
        """
        self.cells[cell.key] = cell
        if self._path is not None:
            rows = [asdict(known) for known in self.cells.values()]
            text = json.dumps({"settings": self._settings, "cells": rows}, indent=1)
            write_atomically(self._path, text.encode(), flush=False)

    def _read(self, path: Path) -> list[Cell]:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            settings, cells = found["settings"], [Cell(**{**row, "findings": ()}) for row in found["cells"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OtherTable(f"{path} can't be read as cells of this table ({error}); give another --out") from error
        if settings != self._settings:
            raise OtherTable(
                f"{path} holds cells of another setting ({settings}); this one is {self._settings}; give another --out"
            )
        return cells
