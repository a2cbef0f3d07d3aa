"""`astrofed bench privacy --utility`: what privacy costs in accuracy, federated by us and centralised by plain Opacus.

Both train by the same settings to the same epsilon. Where each site hides its own rows by itself, sites' noises add up:
with three equal sites there is √3 times the noise of one that held all rows. Where they share it, there is not.
"""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from astrofed.client.tasks.planets_catalogue import read_catalogue
from astrofed.client.tasks.planets_scores import predict, scores, unit_losses
from astrofed.shared import registry
from astrofed.shared.models.base import build_model
from astrofed.shared.plan import Plan, load_plan
from astrofed.shared.privacy.accounting import noise_multiplier_for
from astrofed.simulations.bench import utility_digits
from astrofed.simulations.bench.digits_sites import TRAINING
from astrofed.simulations.bench.result import MARK, Machine, shown, this_machine
from astrofed.simulations.bench.utility_central import train_by_opacus
from astrofed.simulations.bundled import resolve_bundled
from astrofed.simulations.simulate import simulate

if TYPE_CHECKING:
    from rich.table import Table

EPSILONS, DELTA = (1.0, 3.0, 8.0), 1e-5
DIGITS_SEEDS, PLANETS_SEEDS = tuple(range(1, 25)), tuple(range(1, 7))
SITES = 3
DIGITS = {1.0: (1.0, 8.0), 3.0: (2.0, 4.0), 8.0: (2.0, 4.0)}  # clipping norm and learning rate, chosen on other splits
PLANETS = {1.0: 0.05, 3.0: 0.12, 8.0: 0.25}  # learning rate, chosen with the first three seeds
OBSERVATORIES = ("kepler", "tess", "k2", "la_silla", "keck", "others")
POINTS, SHARE = 1.0, 0.05  # how far the federated result may lie behind, of accuracy and of error
HELD_OUT = 0.2


@dataclass(frozen=True)
class UtilityRow:
    """One dataset at one epsilon; a value for each seed."""

    data: str
    noise: Literal["own", "shared"]
    epsilon: float
    measure: str  # "accuracy, %" or "error, widths"
    federated: tuple[float, ...]
    central: tuple[float, ...]
    spent: float  # the largest epsilon that a site's ledger or Opacus came to

    @property
    def behind(self) -> float:
        """How far the federated mean is worse: points of accuracy, or a share of the error."""
        ours, theirs = statistics.mean(self.federated), statistics.mean(self.central)
        return theirs - ours if self.measure.startswith("accuracy") else ours / theirs - 1

    @property
    def met(self) -> bool:
        """Whether that is within what was asked."""
        return self.behind <= (POINTS if self.measure.startswith("accuracy") else SHARE)


@dataclass(frozen=True)
class UtilityResult:
    """All rows, and what they were measured with."""

    machine: Machine
    rows: tuple[UtilityRow, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data for JSON."""
        rows = [{**asdict(row), "behind": row.behind, "met": row.met} for row in self.rows]
        met = {(row.data, row.epsilon): False for row in self.rows} | {
            (row.data, row.epsilon): True for row in self.rows if row.met
        }
        return {**asdict(self), "rows": rows, "met": all(met.values())}  # with noise of one kind or the other

    def table(self) -> "Table":
        """Return the result for people."""
        from rich.table import Table

        table = Table(title=f"Federated by astrofed, central by Opacus, at the same epsilon, delta {DELTA:g}")
        for name in ("data", "noise", "ε", "federated", "central", "behind", "asked", ""):
            table.add_column(name)
        for row in self.rows:
            points = row.measure.startswith("accuracy")
            behind = f"{row.behind:.2f} points" if points else f"{100 * row.behind:.1f} %"
            asked = f"{POINTS:g} point" if points else f"{100 * SHARE:g} %"
            what = f"{row.data}: {row.measure}"
            cells = (what, row.noise, f"{row.epsilon:g}", _spread(row.federated), _spread(row.central))
            table.add_row(*cells, behind, asked, MARK[row.met])
        return table


def _spread(values: Sequence[float]) -> str:
    return f"{shown(statistics.mean(values))} ({shown(min(values))} to {shown(max(values))})"


def run_utility_bench(quick: bool) -> UtilityResult:
    """Measure; `quick` takes one seed and the smallest and largest epsilon."""
    epsilons, most = (EPSILONS[::2], 1) if quick else (EPSILONS, None)
    seeds = {"digits": DIGITS_SEEDS[:most], "planets": PLANETS_SEEDS[:most]}
    registry.load_plugin_file(Path(utility_digits.__file__))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [row for epsilon in epsilons for row in digits_rows(epsilon, seeds["digits"])]
        rows += [planets_row(epsilon, seeds["planets"]) for epsilon in epsilons]
    finally:
        torch.set_num_threads(threads)
    return UtilityResult(this_machine(), tuple(rows), {"quick": quick, "seeds": seeds, "delta": DELTA, "sites": SITES})


def digits_plan(epsilon: float, seed: int) -> Plan:
    """Return the plan of the digits: 20 rounds of one step with all of a site's images."""
    norm, rate = DIGITS[epsilon]
    return load_plan(
        {
            "name": "utility-digits",
            "seed": seed,
            "rounds": 20,
            "evaluate_every": 20,
            "task": "digits-private",
            "model": "digits-linear",
            "training": {"batch_size": 2000, "optimizer": "sgd", "learning_rate": rate, "decay": 0.1},
            "privacy": {"unit": "image", "epsilon": epsilon, "delta": DELTA, "clipping_norm": norm},
            "strategy": {"name": "FedAvg"},
            "engine": {"threads": 1},
            "participants": [{"name": f"site {i}", "data": f"digits-private:{i}/{SITES}/{seed}"} for i in range(SITES)],
        }
    )


def shared_plan(plan: Plan, epsilon: float) -> Plan:
    """Return a plan of the digits with the noise that its sites share; the steps and their cost are the same."""
    noise = noise_multiplier_for(epsilon, DELTA, 1.0, plan.rounds, [])
    changes = [
        "privacy.epsilon=",
        f"privacy.noise_multiplier={noise!r}",
        "privacy.shared_noise.colluding=0",
        "training.max_steps=1",
        f"training.batch_size={TRAINING // SITES}",  # all of a site's images, as before
        'strategy={name = "robust", rule = "mean", f = 0}',
    ]
    return load_plan(plan.to_dict(), changes)


def planets_plan(epsilon: float, seed: int) -> Plan:
    """Return the plan of the catalogue, with the settings of `configs/observatories.toml`, whose epsilon is 8."""
    return load_plan(
        {
            "name": "utility-planets",
            "seed": seed,
            "rounds": 60,
            "evaluate_every": 60,
            "task": {"name": "planets", "held_out": HELD_OUT},
            "model": {"name": "mlp", "hidden": [128]},
            "training": {
                "epochs": 3,
                "batch_size": 512,
                "optimizer": "sgd",
                "learning_rate": PLANETS[epsilon],
                "decay": 0.02,
            },
            "privacy": {"unit": "planet", "epsilon": epsilon, "delta": DELTA, "clipping_norm": 5.0},
            "strategy": {"name": "FedAvg"},
            "engine": {"threads": 1},
            "participants": [{"name": name, "data": f"bundled:planets/{name}"} for name in OBSERVATORIES],
        }
    )


def digits_rows(epsilon: float, seeds: Sequence[int]) -> list[UtilityRow]:
    """Measure the digits at one epsilon, with noise of each site's own and with noise that they share."""

    def central(plan: Plan) -> tuple[float, float]:
        rows, test = utility_digits.split(plan.seed)
        model = build_model(plan)
        spent = train_by_opacus(model, rows, utility_digits.cross_entropy, plan)
        return utility_digits.accuracy(model, test), spent

    plans = [digits_plan(epsilon, seed) for seed in seeds]
    own = _row(f"digits, {SITES} sites", epsilon, "accuracy, %", "accuracy", plans, central)
    federated, spent = _federated([shared_plan(plan, epsilon) for plan in plans], "accuracy")
    return [own, replace(own, noise="shared", federated=federated, spent=max(own.spent, *spent))]


def planets_row(epsilon: float, seeds: Sequence[int]) -> UtilityRow:
    """Measure the planet catalogue at one epsilon; the error is the mean over the observatories."""

    def central(plan: Plan) -> tuple[float, float]:
        catalogues = [read_catalogue(resolve_bundled(f"planets/{name}"), HELD_OUT) for name in OBSERVATORIES]
        parts = [(own.training.features, own.training.targets, own.training.given) for own in catalogues]
        rows = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        model = build_model(plan)
        spent = train_by_opacus(model, rows, lambda m, b: unit_losses(m(b[0]), b[1], b[2]).mean(), plan)
        errors = [scores(predict(model, own.held_out), own.held_out)["loss"] for own in catalogues]
        return statistics.mean(errors), spent

    plans = [planets_plan(epsilon, seed) for seed in seeds]
    return _row(f"planets, {len(OBSERVATORIES)} sites", epsilon, "error, widths", "loss", plans, central)


def _row(
    data: str,
    epsilon: float,
    measure: str,
    metric: str,
    plans: Sequence[Plan],
    central: Callable[[Plan], tuple[float, float]],
) -> UtilityRow:
    federated, spent = _federated(plans, metric)
    theirs = [central(plan) for plan in plans]
    spent += [each[1] for each in theirs]
    return UtilityRow(data, "own", epsilon, measure, federated, tuple(each[0] for each in theirs), max(spent))


def _federated(plans: Sequence[Plan], metric: str) -> tuple[tuple[float, ...], list[float]]:
    """Return a metric of each plan's run, and all epsilons that its sites spent."""
    found, spent = [], []
    for plan in plans:
        with tempfile.TemporaryDirectory() as folder:
            result = simulate(plan, out=Path(folder) / "run")
        found.append(result.metrics[metric])
        spent += [site.epsilon for site in result.privacy]
    return tuple(found), spent
