"""From a customer's folder to a site's folder: dataset, contract, policy, quality, and the report of all that."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import tomli_w

from astrofed.client.data.cube import Cube, read_cube, write_cube
from astrofed.client.data.table import Table, write_table
from astrofed.client.intake.applying import apply_contract
from astrofed.client.intake.contract import (
    CONTRACT_FILE,
    Contract,
    NotConfirmed,
    propose,
    read_contract,
    read_source,
    write_contract,
)
from astrofed.client.intake.finding import find_source
from astrofed.client.intake.quality import FederationScales, Quality, cube_quality, table_quality
from astrofed.client.policy import POLICY_FILE, Policy
from astrofed.shared.errors import UserMistake
from astrofed.shared.files import write_atomically


class SiteExists(UserMistake):
    """The folder for the new site holds a dataset already."""


@dataclass(frozen=True)
class Wishes:
    """What the customer says besides the data."""

    contract: Path | None = None  # reviewed; None: propose one
    confirmed: bool = False  # a proposed contract is applied as it is
    privacy_unit: str | None = None
    privacy_key: str | None = None
    epsilon: float | None = None  # None: no differential privacy is asked for
    delta: float = 1e-5


@dataclass(frozen=True)
class Intake:
    """What the import came to."""

    folder: Path
    data: Path
    kind: str  # "cube" or "table"
    task: str  # the platform's task that it is for
    fingerprint: str
    unit: str  # of privacy
    units: int
    rows: int
    contract: Contract | None  # None for a cube, whose own metadata are its contract
    quality: Quality
    policy: Policy


def take_in(source: Path, folder: Path, wishes: Wishes, federation: FederationScales | None = None) -> Intake:
    """Import a customer's data into a new site's folder.

    `federation`: what a cube is compared with; planets are compared with the fixed scales of their task.

    Raises:
        SiteExists: there is a dataset in `folder`.
        NotConfirmed: the contract has to be looked at first; it lies in `folder` now.
        DataMistake: the data can't be used; the message names file, column, value and mend.
    """
    found = find_source(source)
    data = folder / ("data.zarr" if found.kind == "cube" else "data.parquet")
    if data.exists():
        raise SiteExists(f"{data} exists already; give another folder (--out) or remove it")
    if found.kind == "cube":
        cube = read_cube(found.paths[0])
        folder.mkdir(parents=True, exist_ok=True)
        write_cube(cube, data)
        unit = cube.attributes.get("privacy_unit", "world")
        return _finished(folder, data, cube, None, cube_quality(cube, found, federation), unit, 1, 1, wishes)
    rows = read_source(found.paths)
    contract = _contract(folder, source, rows, wishes)
    table = apply_contract(rows, contract, str(source))
    write_table(table, data)
    quality = table_quality(table, contract)
    return _finished(folder, data, table, contract, quality, table.privacy_unit, table.num_units, len(table), wishes)


def _contract(folder: Path, source: Path, rows: pa.Table, wishes: Wishes) -> Contract:
    if wishes.contract is not None:
        return read_contract(wishes.contract)
    proposed = propose(rows, str(source), unit=wishes.privacy_unit, key=wishes.privacy_key)
    if wishes.confirmed:
        proposed = proposed.model_copy(update={"confirmed": True})
    path = folder / CONTRACT_FILE
    write_contract(proposed, path)
    if not proposed.confirmed:
        raise NotConfirmed(
            f"{path} says what {source} is taken for; it guesses {', '.join(proposed.guesses)}. Look at it, set "
            f"confirmed = true and import again with --contract {path}, or confirm it as it is by --yes"
        )
    return proposed


def _finished(
    folder: Path,
    data: Path,
    dataset: Cube | Table,
    contract: Contract | None,
    quality: Quality,
    unit: str,
    units: int,
    rows: int,
    wishes: Wishes,
) -> Intake:
    task = "planets" if isinstance(dataset, Table) else "datacube"
    policy = _policy(folder, task, wishes)
    kind = "table" if isinstance(dataset, Table) else "cube"
    return Intake(folder, data, kind, task, dataset.fingerprint, unit, units, rows, contract, quality, policy)


def _policy(folder: Path, task: str, wishes: Wishes) -> Policy:
    """Write the site's policy: this task alone, its headline scores, and the customer's epsilon."""
    path = folder / POLICY_FILE
    rules: dict[str, object] = {
        "privacy": "required" if wishes.epsilon is not None else "optional",
        "delta": wishes.delta,
        "metrics": ["loss", "rmse/*", "adapted/loss", "baseline/*"],
        "min_units": 1 if task == "datacube" else 10,
        "statistics": ["*"] if task == "datacube" else [],
        "digits": 3,
    }
    if wishes.epsilon is not None:
        rules["epsilon"] = wishes.epsilon
    models = ["mlp"] if task == "planets" else ["datacube-net"]
    data = {"modes": ["customer", "federated"], "tasks": [task], "models": models, "data": rules}
    policy = Policy.parse(data, path)
    write_atomically(path, ("# What this site allows; yours to edit.\n" + tomli_w.dumps(data)).encode())
    return policy
