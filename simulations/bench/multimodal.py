"""`astrofed bench model --multimodal`: what several modalities are worth together, and whether intervals hold.

The world that is shipped with its emission spectrum, at one site, so that nothing but the modalities differs. A belt's
surface and radiation are told from observations of the same month: the air above it, the planet's constants with the
season, the spectrum. Trained with all of them and with each alone, by the same plan and from the same seeds: ensembles,
since so little data leave single networks to their initial weights.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from astrofed.shared.models.surrogate_layout import TARGETS
from astrofed.shared.plan import Plan, load_plan
from astrofed.shared.record import Round
from astrofed.shared.uncertainty import pooled_conformal
from astrofed.simulations.bench.model_result import ModelResult, Part, interval
from astrofed.simulations.bench.result import Target, this_machine
from astrofed.simulations.result import RunResult
from astrofed.simulations.simulate import simulate

MODALITIES = ("cube", "scalars", "spectrum")
ALL = "all three"
SETTINGS = {ALL: MODALITIES, **{name: (name,) for name in MODALITIES}}
WORLD = "earthlike"
ROUNDS = 10  # in which the learning rate falls along a cosine
EPOCHS, MEMBERS = 60, 3
SEEDS, QUICK_SEEDS = 5, 2
LEAST_GAIN = 0.20
COVERAGE = (0.87, 0.93)


def run_multimodal_bench(quick: bool, done: Callable[[str], None] = lambda _: None) -> ModelResult:
    """Measure; `quick` takes two seeds. `done` is told of each run."""
    seeds = QUICK_SEEDS if quick else SEEDS
    machine, threads = this_machine(), torch.get_num_threads()
    torch.set_num_threads(1)
    runs: dict[str, list[Round]] = {name: [] for name in SETTINGS}
    baselines: Mapping[str, float] = {}
    try:
        for seed in range(1, seeds + 1):
            for name, modalities in SETTINGS.items():
                result = _run(modalities, seed)
                runs[name].append(result.rounds[-1])
                baselines = result.baselines
                done(f"{name}, seed {seed}: {result.metrics['loss']:.3f}")
    finally:
        torch.set_num_threads(threads)
    parts = (gains(runs, baselines), missing(runs[ALL], baselines), coverage(runs[ALL]))
    settings = {"quick": quick, "seeds": seeds, "epochs": EPOCHS, "members": MEMBERS, "world": WORLD}
    return ModelResult("The multi-modal surrogate", machine, parts, settings)


def bench_plan(modalities: Sequence[str], seed: int) -> Plan:
    """Return the plan of one site that uses these modalities."""
    return load_plan(
        {
            "name": "bench",
            "mode": "multimodal",
            "seed": seed,
            "rounds": ROUNDS,
            "evaluate_every": ROUNDS,
            "task": {
                "name": "surrogate",
                "lead": 0,
                "belts": 32,
                "sectors": 4,
                "objective": "crps",
                "balance": "uncertainty",
                "modality_dropout": 0.1,
                "modalities": {WORLD: list(modalities)},
            },
            "model": {"name": "surrogate", "width": 32, "cube_features": 16, "members": MEMBERS},
            "training": {
                "epochs": EPOCHS // ROUNDS,
                "batch_size": 96,
                "learning_rate": 5e-3,
                "weight_decay": 0.05,
                "gradient_clip": 1.0,
                "decay": 0.03,
            },
            "strategy": {"name": "block-mean"},
            "engine": {"threads": 1},
            "participants": [{"name": WORLD, "data": f"bundled:worlds/{WORLD}"}],
        }
    )


def gains(runs: Mapping[str, Sequence[Round]], baselines: Mapping[str, float]) -> Part:
    """Errors with all modalities and with each alone, and by how much all are ahead of the best alone."""
    losses = {name: [entry.metrics["loss"] for entry in own] for name, own in runs.items()}
    best = min(MODALITIES, key=lambda name: statistics.mean(losses[name]))
    gain = interval([1 - all_ / one for all_, one in zip(losses[ALL], losses[best], strict=True)])
    keys = [f"rmse/{target.name}" for target in TARGETS]
    rows = [
        (name, str(interval(losses[name])),
         *(f"{statistics.mean(entry.metrics[key] for entry in own):.3g}" for key in keys))
        for name, own in runs.items()
    ]  # fmt: skip
    rows.append(("climatology", f"{baselines['climatology']:.3f}", *[""] * len(keys)))
    target = Target(f"all: at least {LEAST_GAIN:.0%} less error than {best} alone", gain.mean, gain.mean >= LEAST_GAIN)
    columns = ("modalities", "error", *(f"{target.name}, {target.unit}" for target in TARGETS))
    note = f"Root mean square errors on held-out months, in target widths and in units. Less error by seed: {gain}."
    return Part("All modalities and each alone", columns, tuple(rows), (target,), note, {"gain": gain, "loss": losses})


def missing(runs: Sequence[Round], baselines: Mapping[str, float]) -> Part:
    """Errors of the networks trained with all modalities where they are shown fewer."""
    keys = [key for key in runs[0].metrics if key.startswith(("without/", "only/"))]
    found = {key: interval([entry.metrics[key] for entry in runs]) for key in keys}
    worst = max(value.mean for key, value in found.items() if key.startswith("without/"))
    target = Target(
        "whichever modality is missing, better than the climatology", worst, worst < baselines["climatology"]
    )
    rows = tuple((key.removesuffix("/loss").replace("/", " "), str(value)) for key, value in found.items())
    return Part("Missing modalities", ("shown", "error"), rows, (target,), "", {"loss": found})


def coverage(runs: Sequence[Round]) -> Part:
    """How much the pooled conformal intervals at 90 % cover of the test halves' scores, over all targets."""
    found = [covered for entry in runs if (covered := _coverage(entry)) is not None]
    low, high = COVERAGE
    if len(found) < len(runs):
        return Part("Conformal intervals", (), (), (Target("pooled intervals cover 90 ± 3 %", None, None),))
    all_ = interval(found)
    target = Target("pooled intervals cover 90 ± 3 %", all_.mean, low <= all_.mean <= high)
    return Part("Conformal intervals", ("level", "covered"), (("0.90", str(all_)),), (target,), "", {"covered": found})


def _coverage(entry: Round) -> float | None:
    covered = counted = 0.0
    for target in TARGETS:
        calibration, test = (
            [_counts(metrics, f"conformal/{kind}/{target.name}/") for metrics in entry.sites.values()]
            for kind in ("calibration", "test")
        )
        pooled = pooled_conformal(calibration, test)
        if pooled is None:
            return None
        covered, counted = covered + pooled.coverage * pooled.test, counted + pooled.test
    return covered / counted


def _counts(metrics: Mapping[str, float], prefix: str) -> dict[int, int]:
    return {int(key.removeprefix(prefix)): int(value) for key, value in metrics.items() if key.startswith(prefix)}


def _run(modalities: Sequence[str], seed: int) -> RunResult:
    with tempfile.TemporaryDirectory() as name:
        return simulate(bench_plan(modalities, seed), out=Path(name) / "run")
