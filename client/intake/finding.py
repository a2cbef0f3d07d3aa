"""Which datasets lie in a customer's folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from astrofed.client.data.mistakes import DataMistake


class NothingToImport(DataMistake):
    """A folder holds neither a Zarr group nor a Parquet file."""


class SeveralDatasets(DataMistake):
    """A folder holds datasets that don't make one site."""


@dataclass(frozen=True)
class Source:
    """What is imported: one Zarr group, or Parquet files with the same columns."""

    kind: Literal["cube", "table"]
    paths: tuple[Path, ...]


def find_source(folder: Path) -> Source:
    """Return what a folder (or a single file, or a Zarr group) holds.

    Raises:
        NothingToImport, SeveralDatasets: nothing, or more than one dataset.
    """
    if folder.is_file():
        return Source("table", (folder,))
    if not folder.is_dir():
        raise NothingToImport(f"{folder} does not exist; give a folder with a Zarr group or Parquet files")
    if (folder / "zarr.json").is_file():
        return Source("cube", (folder,))
    tables = tuple(sorted(folder.glob("*.parquet")))
    cubes = tuple(sorted(path.parent for path in folder.glob("*/zarr.json")))
    if (tables and cubes) or len(cubes) > 1:
        names = ", ".join(path.name for path in (*tables, *cubes))
        raise SeveralDatasets(f"{folder} holds several datasets ({names}); a site has one: import each by its own path")
    if not tables and not cubes:
        raise NothingToImport(
            f"{folder} holds no Zarr v3 group (a folder with zarr.json) and no *.parquet file; give the folder of one"
        )
    return Source("cube", cubes) if cubes else Source("table", tables)
