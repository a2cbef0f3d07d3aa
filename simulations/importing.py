"""What the scripts share that convert sources into the tables that ship."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from astrofed.client.data.table import Table, write_table

DATA = Path(__file__).parent / "data"


def import_tables(
    arguments: Sequence[str], about: str | None, folder: str, convert: Callable[[Path], Mapping[str, Table]]
) -> int:
    """Convert sources into tables; print each one's name, fingerprint, rows and bytes.

    Args:
        arguments: the file or folder of sources, and where the tables go, by default `folder` of what ships.
        about: what the script is for; its first line is shown by --help.
        folder: the tables' folder among the data that ship.
        convert: makes each table of the sources, by name.

    Raises:
        TableExists: a table is there already.
    """
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, nargs="?", default=DATA / folder)
    given = parser.parse_args(arguments)
    for name, table in convert(given.source).items():
        path = given.target / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(table, path)
        sys.stdout.write(f"{name} {table.fingerprint} {len(table)} {path.stat().st_size}\n")
    return 0
