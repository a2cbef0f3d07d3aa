"""`astrofed bench model --multimodal`: what several modalities are worth together, and whether intervals hold.

Six worlds at one site, so that nothing but the modalities differs: trained with all of them and with each alone, by
the same plan, epochs, network and seeds. Judged on a seventh world that was not trained on, and on months of the six
that were held out.
"""

import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from astrofed.shared.models.surrogate_layout import TARGETS
from astrofed.shared.plan import Plan, load_plan
from astrofed.shared.record import Round
from astrofed.shared.uncertainty import pooled_conformal
from astrofed.simulations.bench.multimodal_result import Estimate, MultimodalResult, Setting
from astrofed.simulations.bench.result import this_machine
from astrofed.simulations.bundled import resolve_bundled
from astrofed.simulations.result import RunResult
from astrofed.simulations.simulate import simulate

MODALITIES = ("cube", "scalars", "series")  # that every world has; the spectrum is earthlike's alone
ALL = "all three"
WORLDS = ("earthlike", "w1_continents", "w2_fast_ocean", "w3_slow_ocean", "w4_tilted_land", "w5_super_earth")
UNSEEN = "w6_eccentric"
ROUNDS = 10  # in which the learning rate falls along a cosine
_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, 97.5 %, by number of seeds


def run_multimodal_bench(quick: bool, done: Callable[[str], None] = lambda _: None) -> MultimodalResult:
    """Measure; `quick` takes two seeds and a third of the epochs. `done` is told of each run."""
    seeds, epochs = (2, 20) if quick else (5, 60)
    machine, threads = this_machine(), torch.get_num_threads()
    torch.set_num_threads(1)
    runs: dict[str, list[Round]] = {}
    baselines: dict[str, float] = {}
    try:
        for seed in range(1, seeds + 1):
            for name in (ALL, *MODALITIES):
                result = _run(MODALITIES if name == ALL else (name,), seed, epochs)
                runs.setdefault(name, []).append(result.rounds[-1])
                found = result.metrics
                done(f"{name}, seed {seed}: unseen {found['unseen/loss']:.3f}, held out {found['loss']:.3f}")
                baselines = {k: v for k, v in result.baselines.items() if k.count("/") == k.startswith("unseen/")}
    finally:
        torch.set_num_threads(threads)
    return judge(runs, baselines, {"quick": quick, "seeds": seeds, "epochs": epochs, "unseen": UNSEEN}, machine)


def bench_plan(modalities: Sequence[str], data: Path, seed: int, epochs: int) -> Plan:
    """Return the plan of one site, with the worlds in the folder `data`, that uses these modalities."""
    site, used = "six worlds", list(modalities)
    return load_plan(
        {
            "name": "bench",
            "mode": "multimodal",
            "seed": seed,
            "rounds": ROUNDS,
            "evaluate_every": ROUNDS,
            "task": {
                "name": "surrogate",
                "belts": 16,
                "sectors": 4,
                "objective": "crps",
                "balance": "uncertainty",
                "modality_dropout": 0.1,
                "modalities": {site: used, UNSEEN: used},
            },
            "model": {"name": "surrogate", "width": 32, "cube_features": 16},
            "training": {
                "epochs": epochs // ROUNDS,
                "batch_size": 96,
                "learning_rate": 5e-3,
                "weight_decay": 0.05,
                "gradient_clip": 1.0,
                "decay": 0.03,
            },
            "strategy": {"name": "block-mean"},
            "engine": {"threads": 1},
            "participants": [
                {"name": site, "data": str(data)},
                {"name": UNSEEN, "data": f"bundled:worlds/{UNSEEN}", "role": "evaluate"},
            ],
        }
    )


def judge(
    runs: Mapping[str, Sequence[Round]], baselines: Mapping[str, float], settings: Mapping[str, Any], machine: Any
) -> MultimodalResult:
    """Return the measured numbers of finished runs: by setting, the last round of each seed's run."""
    singles = {name: [entry.unseen["loss"] for entry in runs[name]] for name in MODALITIES}
    best = min(singles, key=lambda name: statistics.mean(singles[name]))
    whole = [entry.unseen["loss"] for entry in runs[ALL]]
    gain = estimate([1 - one / other for one, other in zip(whole, singles[best], strict=True)])
    coverage = [pooled for entry in runs[ALL] if (pooled := _coverage(entry)) is not None]
    return MultimodalResult(
        machine=machine,
        settings=dict(settings),
        rows=tuple(
            Setting(name, estimate([e.unseen["loss"] for e in own]), estimate([e.metrics["loss"] for e in own]))
            for name, own in runs.items()
        ),
        missing=tuple(
            Setting(
                key.removesuffix("/loss").replace("/", " "),
                estimate([e.unseen[key] for e in runs[ALL]]),
                estimate([e.metrics[key] for e in runs[ALL]]),
            )
            for key in runs[ALL][0].metrics
            if key.startswith(("without/", "only/"))
        ),
        baselines=dict(baselines),
        best_single=best,
        gain=gain,
        coverage=estimate(coverage) if len(coverage) == len(runs[ALL]) else None,
    )


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean over seeds and the half-width of its 95 % interval (Student's t)."""
    if len(values) < 2:
        return Estimate(values[0], math.nan, tuple(values))
    spread = statistics.stdev(values) / math.sqrt(len(values)) * _T[len(values)]
    return Estimate(statistics.mean(values), spread, tuple(values))


def _coverage(entry: Round) -> float | None:
    """Return how much pooled conformal intervals cover of the training sites' test scores, over all targets."""
    trained = [metrics for name, metrics in entry.sites.items() if name != UNSEEN]
    covered = counted = 0.0
    for target in TARGETS:
        calibration, test = (
            [_counts(metrics, f"conformal/{kind}/{target.name}/") for metrics in trained]
            for kind in ("calibration", "test")
        )
        pooled = pooled_conformal(calibration, test)
        if pooled is None:
            return None
        covered, counted = covered + pooled.coverage * pooled.test, counted + pooled.test
    return covered / counted


def _counts(metrics: Mapping[str, float], prefix: str) -> dict[int, int]:
    return {int(key.removeprefix(prefix)): int(value) for key, value in metrics.items() if key.startswith(prefix)}


def _run(modalities: Sequence[str], seed: int, epochs: int) -> RunResult:
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "worlds"
        data.mkdir()
        for world in WORLDS:
            (data / f"{world}.zarr").symlink_to(resolve_bundled(f"worlds/{world}"))
        return simulate(bench_plan(modalities, data, seed, epochs), out=Path(name) / "run")


def lines(result: MultimodalResult) -> Iterator[str]:
    """Yield the result as a Markdown table's lines, for the documentation."""
    yield "| modalities | unseen world | held-out months |"
    yield "|---|---|---|"
    for row in (*result.rows, *result.missing):
        yield f"| {row.name} | {row.unseen} | {row.sites} |"
    for name, value in result.baselines.items():
        if not name.startswith("unseen/"):
            other = result.baselines.get(f"unseen/{name}")
            yield f"| {name} | {'–' if other is None else f'{other:.3f}'} | {value:.3f} |"
