"""What papers found, beside the cells of the robustness table that should show it again, and what is asked of ours.

A finding compares two cells: the first should be the better. The papers' own data and networks are others; their order
is what should come out again, not their numbers, of which only those are given that stand in the papers' abstracts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from astrofed.simulations.bench.digits_sites import Split
from astrofed.simulations.bench.result import Target
from astrofed.simulations.bench.robustness_table import Cell

NONE, F, MORE = "none", 4, 6
IID: Split = "iid"
HARD: Split = "dirichlet 0.1"
Key = tuple[str, str, str, int]  # defence, split, attack, liars


@dataclass(frozen=True)
class Finding:
    """A paper's claim, and the two cells by which it is judged."""

    paper: str
    claim: str
    better: Key
    worse: Key
    reported: str = ""  # the paper's own number and where it stands there; empty where only its order is known here

    @property
    def source(self) -> str:
        """The paper, with its own number."""
        return f"{self.paper}; there {self.reported}" if self.reported else self.paper

    def target(self, cells: Mapping[Key, float | None]) -> Target:
        """Return what was measured: points between the two."""
        gap = _difference(cells.get(self.better), cells.get(self.worse))
        return Target(f"{self.claim} ({self.source})", gap, None if gap is None else gap > 0)


BARUCH, XIE = "Baruch et al. 2019, A little is enough", "Xie et al. 2020, Fall of empires"
BUCKETING, NNM = "Karimireddy et al. 2022, bucketing", "Allouah et al. 2023, Fixing by mixing"
ARC, MIN_MAX = "Allouah et al. 2025, Adaptive gradient clipping", "Shejwalkar and Houmansadr 2021, min-max"
ALIE, IPM = "alie 1.5", "ipm 0.1"
FINDINGS = (
    *(
        Finding(
            BARUCH,
            f"alie breaks krum, {split}, {MORE} liars",
            ("krum", split, NONE, F),
            ("krum", split, ALIE, MORE),
            "20 % of the workers lower CIFAR-10 accuracy by 50 %, abstract",
        )
        for split in (IID, HARD)
    ),
    Finding(
        NNM,
        f"nnm before krum withstands alie, {MORE} liars",
        ("nnm + krum", HARD, ALIE, MORE),
        ("krum", HARD, ALIE, MORE),
    ),
    Finding(XIE, "ipm with a small epsilon breaks krum", ("krum", HARD, NONE, F), ("krum", HARD, IPM, F)),
    Finding(XIE, "ipm with a small epsilon breaks the median", ("median", HARD, NONE, F), ("median", HARD, IPM, F)),
    Finding(
        BUCKETING, "krum loses to the mean by heterogeneity alone", ("mean", HARD, NONE, F), ("krum", HARD, NONE, F)
    ),
    Finding(BUCKETING, "so does the median", ("mean", HARD, NONE, F), ("median", HARD, NONE, F)),
    Finding(
        BUCKETING, "bucketing rescues krum from that", ("bucketing + krum", HARD, NONE, F), ("krum", HARD, NONE, F)
    ),
    Finding(
        BUCKETING,
        "bucketing rescues krum from mimic",
        ("bucketing + krum", HARD, "mimic", F),
        ("krum", HARD, "mimic", F),
    ),
    Finding(
        NNM, "nnm rescues krum from label flip", ("nnm + krum", HARD, "label flip", F), ("krum", HARD, "label flip", F)
    ),
    Finding(
        NNM,
        "nnm rescues the median from label flip",
        ("nnm + median", HARD, "label flip", F),
        ("median", HARD, "label flip", F),
    ),
    Finding(
        ARC,
        "arc before nnm withstands ipm 3 better",
        ("arc + nnm + krum", HARD, "ipm 3", F),
        ("nnm + krum", HARD, "ipm 3", F),
    ),
    Finding(
        MIN_MAX,
        "min-max harms multi-krum",
        ("multi-krum", HARD, NONE, F),
        ("multi-krum", HARD, "min-max", F),
        "its attacks take 1.5 to 60 times as much accuracy as those known before, abstract",
    ),
)


def with_findings(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells, each with the papers' findings that it takes part in."""
    named: dict[Key, list[str]] = {}
    for finding in FINDINGS:
        for key in (finding.better, finding.worse):
            named.setdefault(key, []).append(f"{finding.source}: {finding.claim}")
    return [replace(cell, findings=tuple(named.get(cell.key, ()))) for cell in cells]


def judge(cells: Sequence[Cell], default: str, plain: str, judged: Sequence[str]) -> tuple[Target, ...]:
    """Return what is known of the order of these defences, or asked of the default, beside what was measured."""
    found = {cell.key: cell.accuracy for cell in cells}
    worst = partial(_worst, found, judged)
    targets = [
        _at_least("default: worst accuracy over the attacks >= 60 %", worst(default), 60.0),
        _at_least("default: at most 4 points below the mean without attack",
                  _difference(found.get((default, HARD, NONE, F)), found.get((plain, HARD, NONE, F))), -4.0),
    ]  # fmt: skip
    for rule in ("krum", "median"):
        for pre, paper in (("nnm", "Allouah et al. 2023"), ("bucketing", "Karimireddy et al. 2022")):
            gain = _difference(worst(f"{pre} + {rule}"), worst(rule))
            targets.append(
                _at_least(f"{pre} rescues {rule} where sites differ, points gained > 0 ({paper})", gain, 0.0)
            )
    targets += [finding.target(found) for finding in FINDINGS]
    compared = [cell for cell in cells if cell.byzfl is not None and cell.accuracy is not None]
    worse = sum(cell.worse_than_byzfl for cell in compared)
    targets.append(
        Target("cells worse than ByzFL's beyond noise: 0", float(worse) if compared else None,
               worse == 0 if compared else None)
    )  # fmt: skip
    return tuple(targets)


def _worst(found: Mapping[Key, float | None], judged: Sequence[str], defence: str) -> float | None:
    values = [found.get((defence, HARD, attack, F)) for attack in judged]
    known = [value for value in values if value is not None]
    return min(known) if known else None


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _at_least(target: str, measured: float | None, bound: float) -> Target:
    return Target(target, measured, None if measured is None else measured >= bound)
