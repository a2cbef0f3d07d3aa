"""What the multi-modal benchmark came to: errors by setting with intervals over seeds, targets, as JSON and a table."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from astrofed.simulations.bench.result import MARK, Machine, Target, verdict

if TYPE_CHECKING:
    from rich.table import Table

LEAST_GAIN = 0.20
COVERAGE = (0.87, 0.93)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, the half-width of its 95 % interval, and the seeds' values."""

    mean: float
    half_width: float
    values: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half_width:.3f}"


@dataclass(frozen=True)
class Setting:
    """Root mean square errors in target widths, of one way to train or to look."""

    name: str
    unseen: Estimate
    sites: Estimate


@dataclass(frozen=True)
class MultimodalResult:
    """All rows, and what they are judged by."""

    machine: Machine
    settings: dict[str, Any]
    rows: tuple[Setting, ...]  # trained with all modalities, and with each alone
    missing: tuple[Setting, ...]  # the network trained with all, shown fewer
    baselines: dict[str, float]
    best_single: str  # on the unseen world
    gain: Estimate  # 1 − error with all / error with the best single, by seed
    coverage: Estimate | None  # of pooled conformal intervals at 90 %; None: not evaluable

    @property
    def targets(self) -> tuple[Target, ...]:
        """What should be reached, and whether it is."""
        low, high = COVERAGE
        covered = None if self.coverage is None else self.coverage.mean
        without = [row for row in self.missing if row.name.startswith("without")]
        worst = max(row.unseen.mean for row in without) if without else None
        persistence = self.baselines.get("unseen/persistence")
        return (
            Target(
                f"all: at least {LEAST_GAIN:.0%} lower error on an unseen world than {self.best_single} alone",
                self.gain.mean,
                self.gain.mean >= LEAST_GAIN,
            ),
            Target(
                "pooled conformal intervals cover 90 ± 3 %",
                covered,
                None if covered is None else low <= covered <= high,
            ),
            Target(
                "whichever modality is missing, better than persistence on the unseen world",
                worst,
                None if worst is None or persistence is None else worst < persistence,
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data for JSON."""
        return {
            **asdict(self),
            "rows": [asdict(row) for row in (*self.rows, *self.missing)],
            "targets": [asdict(target) for target in self.targets],
            "met": verdict(self.targets),
        }

    def table(self) -> "Table":
        """Return the result as a table for people; below it stand the targets."""
        from rich.table import Table

        seeds = self.settings["seeds"]
        caption = [
            f"gain over {self.best_single} alone, unseen world: {self.gain}",
            f"pooled coverage: {self.coverage or 'not evaluable'}",
        ]
        for target in self.targets:
            measured = "-" if target.measured is None else f"{target.measured:.3g}"
            caption.append(f"{MARK[target.met]} {target.target} ({measured})")
        table = Table(
            title=f"Errors in target widths, mean and 95 % interval over {seeds} seeds",
            caption="\n".join(caption),
            caption_justify="left",
        )
        for name in ("modalities", "unseen world", "held-out months"):
            table.add_column(name, justify="left" if name == "modalities" else "right")
        for row in self.rows:
            table.add_row(f"trained with {row.name}", str(row.unseen), str(row.sites))
        for row in self.missing:
            table.add_row(f"trained with all, {row.name}", str(row.unseen), str(row.sites))
        for name, value in self.baselines.items():
            if not name.startswith("unseen/"):
                other = self.baselines.get(f"unseen/{name}")
                table.add_row(name, "" if other is None else f"{other:.3f}", f"{value:.3f}")
        return table
