"""How good a dataset is for the platform: five shares between 0 and 1, each with the findings behind it.

complete: values that are there, of those the task looks at. plausible: of those, in the range of known planets, stars
or atmospheres. distinct: rows that stand once. declared: columns whose meaning and unit somebody declared. alike:
inputs that are spread as the federation's are; "drift" is the distance of the medians in the federation's widths.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from astrofed.client.data.check import check_dataset
from astrofed.client.data.cube import Cube
from astrofed.client.data.table import Table
from astrofed.client.intake.contract import Contract
from astrofed.client.intake.finding import Source
from astrofed.client.intake.vocabulary import NUMBERS, PLAUSIBLE, unit_of
from astrofed.client.tasks.datacube_scales import area_weights, learned_fields
from astrofed.client.tasks.planets_catalogue import LINEAR, SCALES

DRIFTED = 1.0  # federation's widths


@dataclass(frozen=True)
class Part:
    """One share, or None where it can't be evaluated, and what was found."""

    name: str
    share: float | None
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quality:
    """All parts; the score is the mean of those that could be evaluated."""

    parts: tuple[Part, ...]

    @property
    def score(self) -> float:
        """Between 0 and 1."""
        known = [part.share for part in self.parts if part.share is not None]
        return float(np.mean(known))


def table_quality(table: Table, contract: Contract) -> Quality:
    """Score a planets' table."""
    return Quality((_complete(table), _plausible(table), _distinct(table), _declared(contract), _alike(table)))


@dataclass(frozen=True)
class FederationScales:
    """What a federation's worlds look like on average, in learned units; pooled from its sites' statistics."""

    variables: tuple[str, ...]
    mean: NDArray[np.float64]  # [variable, lev]
    field: NDArray[np.float64]  # [variable, lev], standard deviation over a world


def cube_quality(cube: Cube, source: Source, federation: FederationScales | None) -> Quality:
    """Score a climate cube; what a cube can't have missing was checked when it was read."""
    warnings = [problem for problem in check_dataset(source.paths[0]).problems if problem.severity == "warning"]
    odd = {problem.subject for problem in warnings if problem.mistake == "odd values"}
    undeclared = [problem.message for problem in warnings if problem.mistake in ("no attribute", "no height")]
    months = {array.tobytes() for array in np.moveaxis(cube.fields["ta"], 1, 0)}
    repeated = cube.fields["ta"].shape[1] - len(months)
    return Quality(
        (
            Part("complete", 1.0),
            Part("plausible", 1 - len(odd) / len(cube.given), tuple(p.message for p in warnings if p.subject in odd)),
            Part(
                "distinct",
                len(months) / cube.fields["ta"].shape[1],
                (f"{repeated} months repeat another one's temperatures",) if repeated else (),
            ),
            Part("declared", 1 - len(undeclared) / 3, tuple(undeclared)),
            _alike_worlds(cube, federation),
        )
    )


def _alike_worlds(cube: Cube, federation: FederationScales | None) -> Part:
    if federation is None:
        return Part("alike", None, ("not evaluable: give a run of the federation by --reference",))
    there = [name for name in federation.variables if name in cube.fields]
    if not there or federation.mean.shape[1] != len(cube.lev):
        return Part("alike", None, ("not evaluable: other levels or variables than the federation's",))
    fields = learned_fields(cube, there).astype(np.float64)
    own = (fields * area_weights(cube.lat_deg)[:, None]).mean(axis=(1, 2, 4, 5))
    rows = [federation.variables.index(name) for name in there]
    drifts = (np.abs(own - federation.mean[rows]) / federation.field[rows]).mean(axis=1)
    found = [
        f"{name}: its mean lies {drift:.1f} widths from the federation's"
        for name, drift in zip(there, drifts, strict=True)
        if drift > DRIFTED
    ]
    return Part("alike", 1 - len(found) / len(there), tuple(found))


def _complete(table: Table) -> Part:
    absent = {name: int(np.isnan(table.numbers(name, unit_of(name))).sum()) for name in NUMBERS}
    found = [f"{name}: {count} of {len(table)} values absent" for name, count in absent.items() if count]
    return Part("complete", 1 - sum(absent.values()) / (len(NUMBERS) * len(table)), tuple(found))


def _plausible(table: Table) -> Part:
    wrong, whole, found = 0, 0, []
    for name, (low, high) in PLAUSIBLE.items():
        values = table.numbers(name, unit_of(name))
        given = np.isfinite(values)
        out = int(((values < low) | (values > high))[given].sum())
        wrong, whole = wrong + out, whole + int(given.sum())
        if out:
            found.append(f"{name}: {out} values outside {low:g} to {high:g} {unit_of(name)}; is the unit right?")
    return Part("plausible", 1 - wrong / whole if whole else None, tuple(found))


def _distinct(table: Table) -> Part:
    names = table.text("pl_name")
    twice = len(names) - len(np.unique(names))
    found = (f"{twice} rows repeat a planet's name",) if twice else ()
    return Part("distinct", 1 - twice / len(names), found)


def _declared(contract: Contract) -> Part:
    found = tuple(f"{name}: {_guess(contract, name)}" for name in contract.guesses)
    return Part("declared", 1 - len(found) / len(contract.columns), found)


def _guess(contract: Contract, name: str) -> str:
    column = contract.columns[name]
    if column.source is None:
        return f"no column; {100 * (column.relative or 0):g} % of each value assumed"
    return f"column {column.source!r} taken for it" + (f", in {column.unit}" if column.unit else "")


def _alike(table: Table) -> Part:
    near, found, known = 0, [], 0
    for name, (centre, width) in SCALES.items():
        values = table.numbers(name, unit_of(name))
        with np.errstate(invalid="ignore", divide="ignore"):
            raw = values if name in LINEAR else np.log10(values)
        kept = raw[np.isfinite(raw)]
        if not len(kept):
            continue
        known += 1
        drift = abs(float(np.median(kept)) - centre) / width
        near += drift <= DRIFTED
        if drift > DRIFTED:
            found.append(f"{name}: its median lies {drift:.1f} widths from the federation's centre")
    return Part("alike", near / known if known else None, tuple(found))
